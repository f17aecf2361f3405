#!/usr/bin/env bash
# What action.yml runs. The inputs are in MODEL, RELEASES, GOLDEN, REPORTS, TRUST_REMOTE_CODE, SHRINK,
# PRE and PACKAGES. By hand: MODEL=./model RELEASES=5.0,newest .github/action/check.sh
set -euo pipefail

REPORTS="${REPORTS:-rabbitllm-reports}"
arguments=(--releases "${RELEASES:-5.0,5.1,newest}" --reports "$REPORTS")
arguments+=(--golden "${GOLDEN:-rabbitllm-golden.json}")
[[ "${TRUST_REMOTE_CODE:-false}" != true ]] || arguments+=(--trust-remote-code)
[[ "${SHRINK:-false}" != true ]] || arguments+=(--shrink)
[[ "${PRE:-false}" != true ]] || arguments+=(--pre)
read -ra packages <<<"${PACKAGES:-}"
for package in "${packages[@]}"; do arguments+=(--with "$package"); done

# What an earlier step left there is no report of this one.
rm -f "$REPORTS/check.md" "$REPORTS/issue.md"
status=0
rabbitllm check "${MODEL:-.}" "${arguments[@]}" || status=$?

issue=""
[[ ! -f "$REPORTS/issue.md" ]] || issue="$REPORTS/issue.md"
printf 'status=%s\nissue=%s\n' "$status" "$issue" >>"${GITHUB_OUTPUT:-/dev/stderr}"
if [[ -n "${GITHUB_STEP_SUMMARY:-}" && -f "$REPORTS/check.md" ]]; then
  cat "$REPORTS/check.md" >>"$GITHUB_STEP_SUMMARY"
fi
exit "$status"
