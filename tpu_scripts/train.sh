#!/usr/bin/env bash
# Trains a run on a Cloud TPU. A preempted TPU is replaced and the run is resumed.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<EOF
Usage: tpu_scripts/train.sh NAME CONFIG --run-dir gs://BUCKET/RUN --zone ZONE [options] [-- GCLOUD_FLAG...]

Creates the TPU if it does not exist, sets it up, starts the run and shows its log. The run continues if the connection is
lost or this script ends; the same command connects to it again. If the TPU is preempted, a new one is requested and the
run resumes from its checkpoint, until RUN/status.json says finished, diverged or failed. CONFIG is a file in this
checkout or on gs://.

Exit codes: 0 the run finished; 1 any other failure, after which the run may still be in progress; 2 the input is wrong;
3 the run diverged; 4 no TPU was available; 5 the TPU is busy with another run or an installation; 6 the run failed.

  --run-dir RUN        run directory on gs:// (required)
  --set KEY=VALUE      override a key of CONFIG; can be repeated
  --import MODULE      import a plugin, a module in this checkout; can be repeated
  --type TYPE          accelerator type (default v3-8)
  --spot               cheaper, but may be preempted at any time; default: on demand
  --runtime-version V  image of the host (default: the plain one for TYPE)
  --source head|tree   copy the last commit (default), or the working files
  --max-restarts N     give up after losing the TPU N times (default 50)
  --polls COUNT        status checks of a requested TPU before giving up (default 960)
  --delete             delete the TPU when the run has ended, and the request if no TPU was available
$COMMON_USAGE

Arguments after -- are passed to \`gcloud compute tpus queued-resources create\`.
EOF
}

TYPE=v3-8
RUNTIME_VERSION=
RUN_DIR=
SOURCE='head'
MAX_RESTARTS=50
POLLS=960
SPOT=false
DELETE=false
OVERRIDES=()

option() {
  case $1 in
    --run-dir) value "$@" && RUN_DIR=$VALUE ;;
    --set) value "$@" && OVERRIDES+=("$VALUE") ;;
    --import) value "$@" && add_import "$VALUE" ;;
    --type) value "$@" && TYPE=$VALUE ;;
    --runtime-version) value "$@" && RUNTIME_VERSION=$VALUE ;;
    --source) value "$@" && SOURCE=$VALUE ;;
    --max-restarts) value "$@" && MAX_RESTARTS=$VALUE ;;
    --polls) value "$@" && POLLS=$VALUE ;;
    --spot) SPOT=true SHIFT=1 ;;
    --delete) DELETE=true SHIFT=1 ;;
    *) return 1 ;;
  esac
}

check_options() {
  local override
  check_name "$NAME"
  [[ -n $RUN_DIR ]] || fail 2 "--run-dir is missing; see --help"
  check_run_dir RUN_DIR --run-dir
  check_common
  check_type
  matches --source "$SOURCE" 'head|tree' 'head, tree'
  matches --max-restarts "$MAX_RESTARTS" '[0-9]{1,4}' '0 or more'
  matches --polls "$POLLS" '[1-9][0-9]{0,6}' '1 or more'
  for override in ${OVERRIDES[@]+"${OVERRIDES[@]}"}; do
    [[ $override == ?*=* ]] || fail 2 "--set is '$override'; allowed: KEY.PATH=VALUE"
  done
}

# find_config: converts CONFIG to its path in the copy on the TPU.
find_config() {
  [[ $CONFIG != gs://* ]] || return 0
  [[ -f $CONFIG ]] || fail 2 "CONFIG is '$CONFIG'; there is no such file"
  local path
  path=$(cd -- "$(dirname -- "$CONFIG")" && pwd -P)/$(basename -- "$CONFIG")
  [[ $path == "$ROOT"/* ]] || fail 2 "CONFIG is '$CONFIG'; allowed: a file below $ROOT, or on gs://"
  CONFIG=${path#"$ROOT"/}
  if [[ $SOURCE == head ]]; then
    git -C "$ROOT" cat-file -e "HEAD:$CONFIG" 2>/dev/null ||
      fail 2 "CONFIG is '$CONFIG', which is not committed; commit it, or copy it with --source tree"
  elif git -C "$ROOT" check-ignore --quiet -- "$CONFIG"; then
    fail 2 "CONFIG is '$CONFIG', which git ignores and which is therefore not copied"
  fi
}

# read_status ASSUMED: sets STATUS to the state in status.json, or NONE, and REASON.
read_status() {
  local text
  text=$(query "$1" cloud storage cat "$RUN_DIR/status.json") ||
    fail 1 "$RUN_DIR/status.json could not be read: see gcloud's message above"
  STATUS=$(sed -n 's/^ *"state": *"\([a-z]*\)".*/\1/p' <<<"$text" | head -n 1)
  REASON=$(sed -n 's/^ *"reason": *"\(.*\)",\{0,1\}$/\1/p' <<<"$text" | head -n 1)
}

get_tpu() {
  local code=0 flags=("--type=$TYPE" "--runtime-version=$RUNTIME_VERSION" "--polls=$POLLS" --replace)
  ! $SPOT || flags+=(--spot)
  "$HERE/create.sh" "$NAME" "${flags[@]}" "${SAME[@]}" -- ${EXTRA[@]+"${EXTRA[@]}"} || code=$?
  case $code in
    0) ;;
    4) finish 4 "no TPU is available for the run" ;;
    *) fail "$code" "$NAME could not be requested: see above" ;;
  esac
}

# start_script: starts the run on the host, detached from the connection. The run is alive if its lock is held.
start_script() {
  local tpu=local override words
  ! several_hosts || tpu=$NAME
  words=(../neural_alignment_env/bin/neural-alignment train "$CONFIG" ${IMPORTS[@]+"${IMPORTS[@]}"})
  words+=(--set runtime.strategy=tpu --set "runtime.tpu=$tpu")
  for override in ${OVERRIDES[@]+"${OVERRIDES[@]}"}; do
    words+=(--set "$override")
  done
  words+=(--run-dir "$RUN_DIR" --resume)
  local wrapper
  wrapper="echo \$\$ > neural_alignment_run/pid
. neural_alignment_env/tpu.sh
(cd neural_alignment && exec $(quote "${words[@]}"))
echo \$? > neural_alignment_run/exit.partial
mv neural_alignment_run/exit.partial neural_alignment_run/exit"
  cat <<SCRIPT
set -eu
$(hold_lock)
printf '%s\\n' $(quote "$RUN_DIR") > neural_alignment_run/run_dir
setsid nohup sh -c $(quote "$wrapper") < /dev/null > neural_alignment_run/log 2>&1 &
echo \$! > neural_alignment_run/pid
SCRIPT
}

# follow_script LINES: shows the log, starting as `tail -n LINES` does, until the run ends.
follow_script() {
  # shellcheck disable=SC2016  # The host expands the expression.
  printf 'tail -n %s -F --pid="$(cat neural_alignment_run/pid)" neural_alignment_run/log 2>/dev/null\n' "$1"
}

# lost_or_fail MESSAGE: returns if the TPU was preempted, which explains the failure; exits otherwise.
lost_or_fail() {
  local state
  state=$(tpu_state "$NAME") || fail 1 "$1, and the state of $NAME could not be read"
  [[ $state != ready* ]] || fail 1 "$1, though $NAME is ready"
  say "$1: $NAME is ${state#* }"
}

# begin: starts the run unless it is running. Fails (1) if the TPU has been preempted.
begin() {
  probe "$NAME" none
  case $PROBE in
    "running $RUN_DIR") say "the run is already in progress" ;;
    running*) fail 5 "$NAME is busy with ${PROBE#running }" ;;
    silent) lost_or_fail "$NAME does not answer" && return 1 ;;
    *)
      "$HERE/setup.sh" "$NAME" "--type=$TYPE" "--source=$SOURCE" "${SAME[@]}" ||
        { lost_or_fail "the setup of $NAME failed" && return 1; }
      remote "$NAME" 0 "$(start_script)" || { lost_or_fail "the run could not be started on $NAME" && return 1; }
      ;;
  esac
}

# watch: shows the log until the run has ended, and sets CODE. Fails (1) if the TPU or the run is lost.
watch() {
  local lines=+1
  while true; do
    remote "$NAME" 0 "$(follow_script "$lines")" || true
    lines=20
    probe "$NAME" 'ended 0'
    case $PROBE in
      running*) say "the connection was lost; the run continues" && sleep "$POLL" ;;
      ended*) CODE=${PROBE#ended } && return ;;
      silent) lost_or_fail "$NAME does not answer" && return 1 ;;
      *) say "$NAME has restarted" && return 1 ;;
    esac
  done
}

# finish CODE MESSAGE: deletes the TPU if requested, and ends the script.
finish() {
  if $DELETE; then
    "$HERE/delete.sh" "$NAME" --yes "${SAME[@]}" || say "$NAME is not deleted and costs money"
  fi
  (($1 == 0)) || fail "$@"
  say "$2"
  exit 0
}

# conclude: exits with the run's exit code; returns if the run was stopped from outside or its TPU was preempted.
conclude() {
  local state
  read_status finished
  ! $DRY_RUN || STATUS=finished
  case $CODE,$STATUS in
    0,finished) finish 0 "$RUN_DIR: finished" ;;
    3,* | *,diverged) finish 3 "$RUN_DIR: diverged: $REASON" ;;
    2,*) finish 6 "the run rejected its input: see above" ;;
    4,*) finish 1 "the run needs something that cannot be reached: see above" ;;
    *,stopped) say "the run was stopped; $NAME is probably being preempted" && return ;;
  esac
  # A preempted TPU can look like a failure of the program.
  state=$(tpu_state "$NAME") || fail 1 "the run ended with code $CODE, and the state of $NAME could not be read"
  [[ $state != ready* ]] ||
    finish 6 "the run ended with code $CODE, its status is ${STATUS:-NONE}: ${REASON:-see above}"
  say "the run ended with code $CODE: $NAME is ${state#* }"
}

supervise() {
  local restarts
  for ((restarts = 0; restarts <= MAX_RESTARTS; restarts++)); do
    ((restarts == 0)) || say "restart $restarts of $MAX_RESTARTS"
    get_tpu
    if begin && watch; then
      conclude
      sleep "$POLL"
    fi
  done
  finish 4 "$NAME was lost $restarts times, more often than --max-restarts; the same command resumes"
}

parse "$@"
positionals NAME CONFIG
NAME=${POSITIONAL[0]}
CONFIG=${POSITIONAL[1]}
check_options
find_config
same_options

read_status NONE
case $STATUS in
  finished) say "$RUN_DIR is already finished" && exit 0 ;;
  diverged) fail 3 "$RUN_DIR has already diverged: $REASON" ;;
esac
supervise
