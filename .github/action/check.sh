#!/usr/bin/env bash
# What action.yml runs. The inputs are in MODEL, RELEASES, GOLDEN, REPORTS, TRUST_REMOTE_CODE, SHRINK,
# PRE and PACKAGES. By hand: MODEL=./model RELEASES=5.0,newest .github/action/check.sh
set -euo pipefail

REPORTS="${REPORTS:-rabbitllm-reports}"
arguments=(--releases "${RELEASES:-5.0,5.1,newest}" --reports "$REPORTS")
arguments+=(--golden "${GOLDEN:-rabbitllm-golden.json}")

# Adds the option $1 if the input $2, of the name $3, is true.
switch() {
  case "$2" in
    true) arguments+=("$1") ;;
    false) ;;
    *) refused="$3 is \"$2\": give \"true\" or \"false\"." ;;
  esac
}
refused=""
switch --trust-remote-code "${TRUST_REMOTE_CODE:-false}" trust-remote-code
switch --shrink "${SHRINK:-false}" shrink
switch --pre "${PRE:-false}" pre

# Words on as many lines as one likes; an empty array is unbound in bash 3.2.
set -f
for package in ${PACKAGES:-}; do arguments+=(--with "$package"); done
set +f

# What an earlier step left there is no report of this one.
rm -f "$REPORTS/check.md" "$REPORTS/issue.md"
status=0
if [[ -n "$refused" ]]; then
  echo "$refused" >&2
  status=2
else
  rabbitllm check "${arguments[@]}" -- "${MODEL:-.}" || status=$?
fi

issue=""
[[ ! -f "$REPORTS/issue.md" ]] || issue="$REPORTS/issue.md"
# By hand they are said. /dev/stderr is no file to append to: what came before would be overwritten.
if [[ -n "${GITHUB_OUTPUT:-}" ]]; then exec 3>>"$GITHUB_OUTPUT"; else exec 3>&2; fi
printf 'status=%s\nissue=%s\n' "$status" "$issue" >&3
if [[ -n "${GITHUB_STEP_SUMMARY:-}" && -f "$REPORTS/check.md" ]]; then
  cat "$REPORTS/check.md" >>"$GITHUB_STEP_SUMMARY"
fi
exit "$status"
