# shellcheck shell=bash disable=SC2034  # the variables are used by the scripts that source this file
# Common functions of the scripts in this folder: options, checks, calls of gcloud, TPU states. Sourced, not run.
#
# Exit codes of all scripts: 0 done; 1 any other failure, after which a run may still be in progress; 2 the input is wrong;
# 3 the training diverged; 4 no TPU was available; 5 the TPU is busy with another run or an installation; 6 the run failed.
# Messages go to stderr; stdout contains only the log of the run, or the commands of --dry-run.

set -euo pipefail

TOOL="tpu_scripts/$(basename -- "$0")"
HERE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
ROOT=$(dirname -- "$HERE")

ZONE=${TPU_ZONE:-}
PROJECT=${TPU_PROJECT:-}
POLL=30
TRIES=5
DRY_RUN=false

COMMON_USAGE="  --zone ZONE          where the TPU is, such as europe-west4-a (or the variable TPU_ZONE)
  --project PROJECT    Google Cloud project (or TPU_PROJECT; otherwise the one that gcloud is set to)
  --poll SECONDS       pause between status checks (default 30)
  --tries COUNT        attempts per status check if gcloud fails (default 5)
  --dry-run            print the commands of a successful run without running them
  --help               print this help"

# File descriptor 3 is stdout, also inside a command substitution.
exec 3>&1

say() { $DRY_RUN || printf '%s: %s\n' "$TOOL" "$*" >&2; }

# fail CODE MESSAGE: ends the script with one line.
fail() {
  local code=$1
  shift
  local message="$*"
  printf 'error: %s: %s\n' "$TOOL" "${message//$'\n'/ }" >&2
  exit "$code"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail 2 "needs bash 4.4 or newer, found $BASH_VERSION"

# quote WORD...: quotes the words for any POSIX shell; `printf %q` quotes newlines in a form that only bash reads.
quote() {
  local word separator=''
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      printf '%s%s' "$separator" "$word"
    else
      printf "%s'%s'" "$separator" "${word//\'/\'\\\'\'}"
    fi
    separator=' '
  done
}

show() { printf '%s\n' "$(quote "$@")" >&3; }

# --- options -------------------------------------------------------------------------------------------------------

# value FLAG VALUE...: sets VALUE to the value of an option, and SHIFT to the number of words; fails without a value.
value() {
  [[ $# -ge 2 && $2 != --* ]] || fail 2 "$1 needs a value; see --help"
  VALUE=$2
  SHIFT=2
}

# common_option FLAG...: sets the variable of a common option, and SHIFT to the number of words; 1 for other options.
common_option() {
  case $1 in
    --zone) value "$@" && ZONE=$VALUE ;;
    --project) value "$@" && PROJECT=$VALUE ;;
    --poll) value "$@" && POLL=$VALUE ;;
    --tries) value "$@" && TRIES=$VALUE ;;
    --dry-run) DRY_RUN=true SHIFT=1 ;;
    *) return 1 ;;
  esac
}

# parse WORD...: sets the options, POSITIONAL, and EXTRA to the words after `--`. The script that sources this file
# defines `usage` and, like `common_option`, `option`.
parse() {
  POSITIONAL=()
  EXTRA=()
  while (($#)); do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --) shift && EXTRA=("$@") && break ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
      -*)
        option "$@" || common_option "$@" || fail 2 "unknown option $1; see --help"
        shift "$SHIFT"
        ;;
      *) POSITIONAL+=("$1") && shift ;;
    esac
  done
}

# positionals NAME...: fails unless there is one positional argument per name.
positionals() {
  local found=${#POSITIONAL[@]}
  ((found >= $#)) || fail 2 "${*:found + 1:1} is missing; see --help"
  ((found <= $#)) || fail 2 "unexpected argument ${POSITIONAL[$#]}; see --help"
}

# --- checks --------------------------------------------------------------------------------------------------------

# matches NAME FOUND PATTERN ALLOWED: fails with a message unless FOUND matches the pattern as a whole.
matches() { [[ $2 =~ ^($3)$ ]] || fail 2 "$1 is '$2'; allowed: $4"; }

# add_import MODULE: adds the option `--import MODULE` of neural-alignment to IMPORTS.
IMPORTS=()
add_import() {
  matches --import "$1" '[A-Za-z_][A-Za-z0-9_.]*' 'the name of a Python module in this checkout, or of an installed one'
  IMPORTS+=(--import "$1")
}

check_name() {
  matches NAME "$1" '[a-z]([-a-z0-9]{0,48}[a-z0-9])?' \
    'lower-case letters, digits and hyphens, starting with a letter, at most 50 characters'
}

# check_run_dir VARIABLE NAME: checks a run directory, and removes the slashes at its end from the variable: an object
# RUN//file is not RUN/file.
check_run_dir() {
  local -n directory=$1
  while [[ $directory == */ ]]; do directory=${directory%/}; done
  [[ $directory != *[[:cntrl:]]* ]] || fail 2 "$2 is '$directory'; allowed: no control characters"
  matches "$2" "$directory" 'gs://[a-z0-9][-a-z0-9._]{1,61}[a-z0-9]/[^][*?#]+' 'gs://BUCKET/PATH without * ? [ ] #'
}

check_common() {
  matches --zone "$ZONE" '[a-z]+-[a-z]+[0-9]+-[a-z][a-z0-9]*' 'a zone such as europe-west4-a (also from TPU_ZONE)'
  [[ -z $PROJECT ]] || matches --project "$PROJECT" '[a-z][-a-z0-9.:]*' 'a project such as my-project-1'
  matches --poll "$POLL" '[0-9]{1,5}' 'whole seconds'
  matches --tries "$TRIES" '[1-9][0-9]{0,3}' '1 or more'
  $DRY_RUN || command -v gcloud >/dev/null || fail 2 "gcloud was not found; install the Google Cloud CLI"
}

# check_type: checks TYPE and RUNTIME_VERSION. The default of RUNTIME_VERSION depends on TYPE
# (cloud.google.com/tpu/docs/runtimes).
check_type() {
  matches --type "$TYPE" '(v2|v3|v4|v5litepod|v5p|v6e)-[0-9]{1,4}' \
    'v2-8, v3-8, or a newer one such as v4-8, v5litepod-8, v5p-8, v6e-8'
  if [[ -z $RUNTIME_VERSION ]]; then
    # TensorFlow controls a slice of several hosts through a server on each host, which only special images contain.
    ! several_hosts || fail 2 "--runtime-version is required for $TYPE, which has several hosts:" \
      'tpu-vm-tf-X.Y.Z-pod-pjrt of the installed TensorFlow'
    case $TYPE in
      v5litepod-*) RUNTIME_VERSION=v2-alpha-tpuv5-lite ;;
      v5p-*) RUNTIME_VERSION=v2-alpha-tpuv5 ;;
      v6e-*) RUNTIME_VERSION=v2-alpha-tpuv6e ;;
      *) RUNTIME_VERSION=tpu-ubuntu2204-base ;;
    esac
  fi
  matches --runtime-version "$RUNTIME_VERSION" '[a-z0-9][-a-z0-9._]*' 'a name such as tpu-ubuntu2204-base'
}

# One host has eight cores, or eight chips of v5e and v6e.
several_hosts() { ((10#${TYPE#*-} > 8)); }

# same_options: sets SAME to the common options, to pass them to other scripts.
same_options() {
  SAME=("--zone=$ZONE" "--poll=$POLL" "--tries=$TRIES")
  [[ -z $PROJECT ]] || SAME+=("--project=$PROJECT")
  ! $DRY_RUN || SAME+=(--dry-run)
}

# --- gcloud --------------------------------------------------------------------------------------------------------

# --quiet: gcloud must not wait for interactive input.
cloud() {
  if $DRY_RUN; then
    show gcloud "$@" --quiet
  else
    gcloud "$@" --quiet
  fi
}

# tpus GROUP VERB WORD...: gcloud compute tpus, in the zone and project of the options.
tpus() {
  local place=("--zone=$ZONE")
  [[ -z $PROJECT ]] || place+=("--project=$PROJECT")
  cloud compute tpus "$@" "${place[@]}"
}

# query DRY_ANSWER CALL...: prints the output of the call, or NONE if the object does not exist. Tries $TRIES times. With
# --dry-run it prints DRY_ANSWER.
query() {
  local assumed=$1 try output errors
  shift
  if $DRY_RUN; then
    "$@"
    printf '%s\n' "$assumed"
    return
  fi
  errors=$(mktemp)
  for ((try = 1; ; try++)); do
    if output=$("$@" 2>"$errors"); then
      break
    elif grep -qE 'NOT_FOUND|matched no objects or files' "$errors"; then
      output=NONE
      break
    elif ((try >= TRIES)); then
      cat "$errors" >&2
      rm -f "$errors"
      return 1
    fi
    sleep "$POLL"
  done
  rm -f "$errors"
  printf '%s\n' "$output"
}

# tpu_state NAME [ASSUMED]: prints `none NONE`, `waiting STATE`, `ready READY` or `lost STATE`. With --dry-run the state
# of the request is ASSUMED, by default ACTIVE.
# States: google.cloud.tpu.v2 QueuedResourceState.State and Node.State.
tpu_state() {
  local state
  state=$(query "${2:-ACTIVE}" tpus queued-resources describe "$1" '--format=value(state.state)') || return 1
  if [[ $state == ACTIVE ]]; then
    state=$(query READY tpus tpu-vm describe "$1" '--format=value(state)') || return 1
    # The request is active but its TPU no longer exists.
    [[ $state != NONE ]] || state=GONE
  fi
  case $state in
    NONE) echo 'none NONE' ;;
    READY) echo 'ready READY' ;;
    ACCEPTED | CREATING | PROVISIONING | WAITING_FOR_RESOURCES) echo "waiting $state" ;;
    STARTING | RESTARTING | REPAIRING | REIMAGING) echo "waiting $state" ;;
    *) echo "lost ${state:-UNKNOWN}" ;;
  esac
}

# remote NAME WORKER SCRIPT: runs a script on the TPU's host; its exit code is the script's.
remote() { tpus tpu-vm ssh "$1" "--worker=$2" "--command=$3"; }

# hold_lock: the lock of a host is held during a run and during an installation. `probe` takes it for a moment, so
# another call waits for a second before it fails.
hold_lock() {
  cat <<'SCRIPT'
mkdir -p neural_alignment_run
exec 9> neural_alignment_run/lock
flock -w 1 9 || { echo "a run or an installation is in progress on this TPU" >&2; exit 1; }
rm -f neural_alignment_run/exit
SCRIPT
}

# probe_script: prints the state of the run on the host as a line for `probe`.
probe_script() {
  cat <<'SCRIPT'
cd neural_alignment_run 2>/dev/null || { echo "probe: none"; exit 0; }
if [ -f exit ]; then echo "probe: ended $(cat exit)"
elif flock -n lock true; then echo "probe: gone"
else echo "probe: running $(cat run_dir)"
fi
SCRIPT
}

# probe NAME ASSUMED: sets PROBE to none, gone, `ended CODE`, `running RUN_DIR`, `running an installation`, or silent if
# the host does not answer.
probe() {
  local text
  if text=$(query "probe: $2" remote "$1" 0 "$(probe_script)"); then
    PROBE=$(sed -n 's/^probe: //p' <<<"$text")
  else
    PROBE=silent
  fi
}
