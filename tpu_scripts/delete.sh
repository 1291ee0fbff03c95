#!/usr/bin/env bash
# Deletes a Cloud TPU and its queued resource; files on gs:// are kept.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<EOF
Usage: tpu_scripts/delete.sh NAME --zone ZONE [options]

Deletes the TPU and its queued resource, after confirmation. A run in progress is interrupted. Its files on gs:// are
kept, and train.sh can resume it.

  --yes                do not ask for confirmation
$COMMON_USAGE
EOF
}

YES=false

option() {
  case $1 in
    --yes) YES=true SHIFT=1 ;;
    *) return 1 ;;
  esac
}

parse "$@"
positionals NAME
NAME=${POSITIONAL[0]}
check_name "$NAME"
check_common

if ! $YES && ! $DRY_RUN; then
  printf 'Delete the TPU %s in %s? Files on gs:// are kept. [y/N] ' "$NAME" "$ZONE" >&2
  read -r answer || true
  [[ ${answer:-} == [yY] || ${answer:-} == yes ]] || fail 1 "nothing was deleted; --yes deletes without asking"
fi
tpus queued-resources delete "$NAME" --force || fail 1 "$NAME could not be deleted: see gcloud's message above"
say "$NAME is deleted"
