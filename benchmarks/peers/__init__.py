"""RabbitLLM beside other engines that run models larger than memory."""
