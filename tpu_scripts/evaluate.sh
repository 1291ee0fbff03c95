#!/usr/bin/env bash
# Recomputes the final accuracy of a run on a Cloud TPU that is set up.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<EOF
Usage: tpu_scripts/evaluate.sh NAME RUN --zone ZONE [options]

Runs \`neural-alignment evaluate RUN --strategy tpu\` on a TPU that setup.sh or train.sh has set up. RUN is a finished run
on gs://.

  --import MODULE      import a plugin with which the run was trained; can be repeated
$COMMON_USAGE
EOF
}

option() {
  case $1 in
    --import) value "$@" && add_import "$VALUE" ;;
    *) return 1 ;;
  esac
}

evaluation() {
  cat <<'SCRIPT'
set -eu
[ -f neural_alignment_env/tpu.sh ] || {
  echo "error: this TPU is not set up; run tpu_scripts/setup.sh" >&2
  exit 2
}
. neural_alignment_env/tpu.sh
cd neural_alignment
SCRIPT
  quote exec ../neural_alignment_env/bin/neural-alignment evaluate "$RUN" --strategy tpu ${IMPORTS[@]+"${IMPORTS[@]}"}
}

parse "$@"
positionals NAME RUN
NAME=${POSITIONAL[0]}
RUN=${POSITIONAL[1]}
check_name "$NAME"
check_run_dir RUN RUN
check_common

code=0
remote "$NAME" 0 "$(evaluation)" || code=$?
((code == 0)) || fail "$code" "the evaluation of $RUN on $NAME failed: see above"
