#!/usr/bin/env bash
# Requests a Cloud TPU as a queued resource and waits until it is ready.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<EOF
Usage: tpu_scripts/create.sh NAME --zone ZONE [options] [-- GCLOUD_FLAG...]

Requests a Cloud TPU and waits for it. The queued resource and the TPU are both called NAME. If they are already requested
or ready, they are not requested again. Ctrl-C stops the waiting but not the request; delete.sh cancels it.

  --type TYPE          accelerator type (default v3-8)
  --spot               cheaper, but may be preempted at any time; default: on demand
  --runtime-version V  image of the host (default: the plain one for TYPE)
  --replace            delete a preempted or failed TPU of this name and request a new one
  --polls COUNT        status checks before giving up (default 960: 8 hours at 30 s)
$COMMON_USAGE

Arguments after -- are passed to \`gcloud compute tpus queued-resources create\`, such as --service-account=ACCOUNT.
EOF
}

TYPE=v3-8
RUNTIME_VERSION=
SPOT=false
REPLACE=false
POLLS=960

option() {
  case $1 in
    --type) value "$@" && TYPE=$VALUE ;;
    --runtime-version) value "$@" && RUNTIME_VERSION=$VALUE ;;
    --polls) value "$@" && POLLS=$VALUE ;;
    --spot) SPOT=true SHIFT=1 ;;
    --replace) REPLACE=true SHIFT=1 ;;
    *) return 1 ;;
  esac
}

request() {
  local flags=("--node-id=$NAME" "--accelerator-type=$TYPE" "--runtime-version=$RUNTIME_VERSION")
  ! $SPOT || flags+=(--spot)
  tpus queued-resources create "$NAME" "${flags[@]}" ${EXTRA[@]+"${EXTRA[@]}"} ||
    fail 4 "$NAME could not be requested: see gcloud's message above"
  say "$NAME: $TYPE requested"
}

discard() {
  say "$NAME is $1: deleting it and requesting a new one"
  tpus queued-resources delete "$NAME" --force || fail 4 "$NAME could not be deleted: see gcloud's message above"
}

# read_state [ASSUMED]: sets STATE.
read_state() {
  STATE=$(tpu_state "$NAME" "$@") || fail 1 "the state of $NAME could not be read: see gcloud's message above"
}

wait_until_ready() {
  local poll
  for ((poll = 1; poll <= POLLS; poll++)); do
    read_state
    case $STATE in
      ready*) say "$NAME is ready" && return ;;
      waiting*) say "$NAME is ${STATE#* } (check $poll of $POLLS, the next in $POLL s)" ;;
      *)
        fail 4 "$NAME is ${STATE#* } and will not become ready; for the reason see" \
          "\`gcloud compute tpus queued-resources describe $NAME --zone=$ZONE\`"
        ;;
    esac
    sleep "$POLL"
  done
  fail 4 "$NAME is still ${STATE#* } after $POLLS checks; create.sh continues to wait for it," \
    "delete.sh cancels the request"
}

parse "$@"
positionals NAME
NAME=${POSITIONAL[0]}
check_name "$NAME"
check_common
check_type
matches --polls "$POLLS" '[1-9][0-9]{0,6}' '1 or more'

read_state NONE
case $STATE in
  none*) request ;;
  lost*)
    $REPLACE || fail 4 "$NAME is ${STATE#* }; --replace deletes it and requests a new one"
    discard "${STATE#* }"
    request
    ;;
esac
wait_until_ready
