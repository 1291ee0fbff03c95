#!/usr/bin/env bash
# Trains several configurations, given or proposed by a search, on Cloud TPUs. A TPU takes the next one when it is free.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<EOF
Usage: tpu_scripts/search.sh --tpus NAME,NAME --runs gs://BUCKET/SEARCH --zone ZONE [options]
                             (TRIAL.yaml... | --search SEARCH) [-- GCLOUD_FLAG...]

Trains each TRIAL with train.sh in the run directory gs://BUCKET/SEARCH/TRIAL. A trial that fails or diverges does not
stop the others. Finished trials are not run again, so the same command continues an interrupted search. If a TPU is
unavailable or busy with another run, the other TPUs take its trial. A TPU is no longer used if it is not known how its
trial ended.

With --search this machine runs \`neural-alignment search SEARCH\` in gs://BUCKET/SEARCH, and train.sh trains each
proposed trial. The same command continues an interrupted search. See docs/search.md.

Exit codes: 0 all trials finished or diverged; 1 any other failure; 2 the input is wrong; 4 trials were not run, because no
TPU was available. With --search: the code of \`neural-alignment search\`.

  --tpus NAMES         names of the TPUs, separated by commas (required); they are created if they do not exist
  --runs PATH          folder of the run directories, on gs:// (required)
  --search SEARCH      a file in configs/search, or its name, instead of TRIALs
  --trials COUNT       number of trials of the search; default: as in its file
  --delete             delete each TPU when there are no more trials for it; not one that may still train a run, and with
                       --search none if the search does not end well
  --set, --import, --type, --spot, --runtime-version, --source, --max-restarts, --polls: as in train.sh
$COMMON_USAGE
EOF
}

TPUS=()
RUNS=
SEARCH=
COUNT=
DELETE=false
PASSED=()
OVERRIDES=()

option() {
  case $1 in
    --tpus) value "$@" && IFS=, read -r -a TPUS <<<"$VALUE" ;;
    --runs) value "$@" && RUNS=$VALUE ;;
    --search) value "$@" && SEARCH=$VALUE ;;
    --trials) value "$@" && COUNT=$VALUE ;;
    --delete) DELETE=true SHIFT=1 ;;
    --spot) PASSED+=(--spot) SHIFT=1 ;;
    --set) value "$@" && OVERRIDES+=(--set "$VALUE") ;;
    --import) value "$@" && add_import "$VALUE" && PASSED+=(--import "$VALUE") ;;
    --type | --runtime-version | --source | --max-restarts | --polls)
      value "$@" && PASSED+=("$1" "$VALUE")
      ;;
    *) return 1 ;;
  esac
}

trial_name() {
  local name
  name=$(basename -- "$1")
  name=${name%.yaml}
  printf '%s\n' "${name%.yml}"
}

run_dir() { printf '%s\n' "$RUNS/$(trial_name "$1")"; }

# unique NAME WORD...: fails with a message if a word occurs twice.
unique() {
  local twice
  twice=$(printf '%s\n' "${@:2}" | sort | uniq -d | head -n 1)
  [[ -z $twice ]] || fail 2 "$1 has '$twice' twice"
}

check_options() {
  local tpu trial names=()
  ((${#TPUS[@]})) || fail 2 "--tpus is missing; see --help"
  [[ -n $RUNS ]] || fail 2 "--runs is missing; see --help"
  if [[ -n $SEARCH ]]; then
    ((!${#TRIALS[@]})) || fail 2 "unexpected argument ${TRIALS[0]}: --search proposes the trials"
    [[ -z $COUNT ]] || matches --trials "$COUNT" '[1-9][0-9]{0,5}' '1 or more'
    $DRY_RUN || command -v neural-alignment >/dev/null ||
      fail 2 "neural-alignment was not found; install it with pip install '.[cpu]'"
  else
    ((${#TRIALS[@]})) || fail 2 "TRIAL is missing; see --help"
    [[ -z $COUNT ]] || fail 2 "--trials needs --search; see --help"
  fi
  for tpu in "${TPUS[@]}"; do check_name "$tpu"; done
  unique --tpus "${TPUS[@]}"
  check_run_dir RUNS --runs
  check_common
  for trial in ${TRIALS[@]+"${TRIALS[@]}"}; do
    [[ $trial == gs://* || -f $trial ]] || fail 2 "TRIAL is '$trial'; there is no such file"
    names+=("$(trial_name "$trial")")
    matches TRIAL "${names[-1]}" '[A-Za-z0-9][-A-Za-z0-9._]*' \
      'a file name of letters, digits, hyphens, dots and underscores'
  done
  unique TRIAL ${names[@]+"${names[@]}"}
}

# train TPU TRIAL
train() {
  "$HERE/train.sh" "$1" "$2" --run-dir "$(run_dir "$2")" \
    ${OVERRIDES[@]+"${OVERRIDES[@]}"} ${PASSED[@]+"${PASSED[@]}"} "${SAME[@]}" -- ${EXTRA[@]+"${EXTRA[@]}"}
}

# propose: runs the search on this machine. Overrides are passed to the search, which writes them into its trials.
propose() {
  local launcher words tpus
  launcher=("$HERE/train.sh" '{tpu}' '{config}' --run-dir '{run_dir}' ${PASSED[@]+"${PASSED[@]}"} "${SAME[@]}")
  launcher+=(-- ${EXTRA[@]+"${EXTRA[@]}"})
  tpus=$(IFS=, && printf '%s' "${TPUS[*]}")
  words=(neural-alignment search "$SEARCH" --search-dir "$RUNS" --engine "tpu:$tpus" --launcher "$(quote "${launcher[@]}")")
  words+=(${OVERRIDES[@]+"${OVERRIDES[@]}"} ${IMPORTS[@]+"${IMPORTS[@]}"})
  [[ -z $COUNT ]] || words+=(--trials "$COUNT")
  if $DRY_RUN; then
    show "${words[@]}"
  else
    "${words[@]}"
  fi
}

# prefixed PREFIX: copies stdin and puts the prefix before each line.
prefixed() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

# discard TPU: deletes it if requested, unless it is training a run, for example one that another user has started.
discard() {
  local state
  $DELETE || return 0
  if ! state=$(tpu_state "$1"); then
    say "the state of $1 could not be read: it is not deleted and costs money"
    return
  elif [[ $state == ready* ]]; then
    probe "$1" 'ended 0'
    case $PROBE in
      running*) say "$1 is busy with ${PROBE#running }: it is not deleted and costs money" && return ;;
      silent) say "$1 does not answer: it is not deleted and costs money" && return ;;
    esac
  fi
  "$HERE/delete.sh" "$1" --yes "${SAME[@]}" || say "$1 is not deleted and costs money"
}

# claim INDEX: fails if the trial is claimed. A trial is claimed by creating its folder, which only one process can do.
claim() { mkdir -- "$CLAIMS/$1" 2>/dev/null; }

# adopt: claims for each TPU the trial that it is training, which an earlier call of this script started.
adopt() {
  local tpu index
  for tpu in "${TPUS[@]}"; do
    [[ $(tpu_state "$tpu" NONE) == ready* ]] || continue
    probe "$tpu" none
    for index in "${!TRIALS[@]}"; do
      [[ $PROBE == "running $(run_dir "${TRIALS[index]}")" ]] || continue
      ! claim "$index" || printf '%s\n' "$index" >"$CLAIMS/$tpu.adopted"
    done
  done
}

# work TPU: runs the adopted trial of the TPU, and others until none is left.
work() {
  local adopted='' index trial codes
  if [[ -e $CLAIMS/$1.adopted ]]; then
    adopted=$(<"$CLAIMS/$1.adopted")
    rm -- "$CLAIMS/$1.adopted"
  fi
  for index in $adopted "${!TRIALS[@]}"; do
    if [[ $index == "$adopted" ]]; then
      adopted=''
    else
      claim "$index" || continue
    fi
    trial=${TRIALS[index]}
    # The exit code of train.sh, not that of the pipe.
    codes=(0)
    train "$1" "$trial" 2>&1 | prefixed "$1 $(trial_name "$trial")" || codes=("${PIPESTATUS[@]}")
    case ${codes[0]} in
      4 | 5) rmdir -- "$CLAIMS/$index" ;;
      *) printf '%s %s\n' "${codes[0]}" "$1" >"$CLAIMS/$index/result" ;;
    esac
    case ${codes[0]} in
      0 | 2 | 3 | 6) continue ;;
    esac
    : >"$CLAIMS/$1.gone"
    case ${codes[0]} in
      4) say "$1 is not available; another TPU gets its trial" && break ;;
      5) say "$1 is neither used nor deleted; another TPU gets its trial" && return ;;
      *) say "$1 may still train $(trial_name "$trial"): it is neither used nor deleted" && return ;;
    esac
  done
  discard "$1"
}

# rounds: starts the workers, and starts them again if a TPU was lost and its trial is left after the others have ended.
rounds() {
  local tpu workers=()
  trap 'stop INT "${workers[@]}"' INT
  trap 'stop TERM "${workers[@]}"' TERM
  while ! all_claimed; do
    workers=()
    for tpu in "${TPUS[@]}"; do
      [[ ! -e $CLAIMS/$tpu.gone ]] || continue
      work "$tpu" &
      workers+=($!)
    done
    ((${#workers[@]})) || return 0
    wait "${workers[@]}" || true
  done
}

# end PROCESS: ends a process and those that it started, which would otherwise go on and create TPUs. Job control would
# end them together too, but a worker that asks for the passphrase of a key would then be stopped.
end() {
  local child children
  children=$(pgrep -P "$1" || true)
  kill "$1" 2>/dev/null || true
  for child in $children; do end "$child"; done
}

# stop SIGNAL WORKER...: ends the workers and the script. Runs continue.
stop() {
  local worker
  for worker in "${@:2}"; do end "$worker"; done
  fail 1 "SIG$1; runs on TPUs continue, and the same command finds them"
}

all_claimed() {
  local index
  for index in "${!TRIALS[@]}"; do
    [[ -d $CLAIMS/$index ]] || return 1
  done
}

# summary: prints the result of each trial and returns the exit code.
summary() {
  local index code tpu word worst=0
  for index in "${!TRIALS[@]}"; do
    { read -r code tpu <"$CLAIMS/$index/result"; } 2>/dev/null || code=none tpu=-
    case $code in
      0) word=finished ;;
      3) word=diverged ;;
      2) word=refused ;;
      6) word=failed ;;
      none) word='not run' ;;
      *) word=unknown ;;
    esac
    case $word in
      refused | failed | unknown) worst=1 ;;
      'not run') ((worst)) || worst=4 ;;
    esac
    printf '%-9s %s %s\n' "$word" "$tpu" "$(run_dir "${TRIALS[index]}")"
  done
  return "$worst"
}

parse "$@"
TRIALS=(${POSITIONAL[@]+"${POSITIONAL[@]}"})
check_options
same_options

if [[ -n $SEARCH ]]; then
  code=0
  propose || code=$?
  if $DRY_RUN; then
    "$HERE/train.sh" "${TPUS[0]}" "$RUNS/settings/0001.yaml" --run-dir "$RUNS/trials/0001" \
      ${PASSED[@]+"${PASSED[@]}"} "${SAME[@]}" -- ${EXTRA[@]+"${EXTRA[@]}"}
  fi
  if ((code == 0)); then
    for tpu in "${TPUS[@]}"; do discard "$tpu"; done
  elif $DELETE; then
    say "the search ended with code $code; the TPUs are not deleted and cost money"
  fi
  exit "$code"
fi
CLAIMS=$(mktemp -d)
trap 'rm -rf -- "$CLAIMS"' EXIT
adopt
if $DRY_RUN; then
  for index in "${!TRIALS[@]}"; do
    train "${TPUS[index % ${#TPUS[@]}]}" "${TRIALS[index]}"
  done
  for tpu in "${TPUS[@]}"; do discard "$tpu"; done
  exit 0
fi
rounds
summary
