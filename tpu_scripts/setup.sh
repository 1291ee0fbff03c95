#!/usr/bin/env bash
# Copies the source to a Cloud TPU and installs it.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<EOF
Usage: tpu_scripts/setup.sh NAME --zone ZONE [options]

Copies the source of this git checkout to every host of the TPU, into ~/neural_alignment, and installs \`.[tpu]\` with the
versions of constraints-tpu.txt into ~/neural_alignment_env.

  --source head|tree   copy the last commit (default), or the working files except those ignored by git
  --type TYPE          accelerator type of the TPU (default v3-8)
$COMMON_USAGE
EOF
}

TYPE=v3-8
SOURCE='head'
ARCHIVE=neural_alignment.tar.gz

option() {
  case $1 in
    --type) value "$@" && TYPE=$VALUE ;;
    --source) value "$@" && SOURCE=$VALUE ;;
    *) return 1 ;;
  esac
}

# existing: copies the paths that exist. git also lists files that have been deleted without a commit.
existing() {
  local path
  while IFS= read -r -d '' path; do
    [[ ! -e $path && ! -L $path ]] || printf '%s\0' "$path"
  done
}

pack_tree() {
  (cd -- "$ROOT" && git ls-files -z --cached --others --exclude-standard | existing | tar --null -T - -czf "$1")
}

pack() {
  if $DRY_RUN; then
    if [[ $SOURCE == head ]]; then
      show git -C "$ROOT" archive "--output=$ARCHIVE" HEAD
    else
      printf '(cd %s && git ls-files -z --cached --others --exclude-standard | tar --null -T - -czf %s)\n' \
        "$(quote "$ROOT")" "$ARCHIVE"
    fi
    return
  fi
  FOLDER=$(mktemp -d)
  trap 'rm -rf -- "$FOLDER"' EXIT
  if [[ $SOURCE == head ]]; then
    git -C "$ROOT" diff --quiet HEAD || say "uncommitted changes are not copied; --source tree copies them"
    git -C "$ROOT" archive "--output=$FOLDER/$ARCHIVE" HEAD
  else
    pack_tree "$FOLDER/$ARCHIVE"
  fi || fail 1 "the source could not be packed: see the message above"
  cd -- "$FOLDER"
}

# The script for each host. It holds the lock until its last command has ended, also if the connection is lost: the files
# of a run, or of another installation, must not be replaced.
installation() {
  printf 'set -eu\n'
  hold_lock
  cat <<'SCRIPT'
echo 'an installation' > neural_alignment_run/run_dir
rm -rf neural_alignment
mkdir neural_alignment
tar -xzf neural_alignment.tar.gz -C neural_alignment
python3 -m venv neural_alignment_env || {
  sudo apt-get -qq update
  sudo apt-get -qq install -y python3-venv
  python3 -m venv --clear neural_alignment_env
}
neural_alignment_env/bin/pip install --quiet --upgrade pip
neural_alignment_env/bin/pip install --quiet --constraint neural_alignment/constraints-tpu.txt \
  --editable './neural_alignment[tpu]'
SCRIPT
  # tpu.sh sets the location of the TPU for TensorFlow: this host, or all hosts of the slice with this name.
  if several_hosts; then
    printf 'echo %s > neural_alignment_env/tpu.sh\n' "$(quote "export TPU_NAME=$NAME TPU_LOAD_LIBRARY=0")"
  else
    cat <<'SCRIPT'
library=$(neural_alignment_env/bin/python -c 'import libtpu; print(libtpu.get_library_path())')
cat > neural_alignment_env/tpu.sh <<END
export TPU_NAME=local NEXT_PLUGGABLE_DEVICE_USE_C_API=true TF_PLUGGABLE_DEVICE_LIBRARY_PATH=$library
END
SCRIPT
  fi
}

parse "$@"
positionals NAME
NAME=${POSITIONAL[0]}
check_name "$NAME"
check_common
RUNTIME_VERSION=any
check_type
matches --source "$SOURCE" 'head|tree' 'head, tree'
git -C "$ROOT" rev-parse --verify HEAD >/dev/null 2>&1 ||
  fail 2 "$ROOT is not a git checkout; the source is copied from one"

pack
tpus tpu-vm scp "$ARCHIVE" "$NAME:" --worker=all ||
  fail 1 "the source could not be copied to $NAME: see gcloud's message above"
remote "$NAME" all "$(installation)" || fail 1 "the installation on $NAME failed: see above"
say "$NAME is set up"
