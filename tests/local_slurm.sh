#!/usr/bin/env bash
# Starts or stops a private SLURM with two nodes on this machine, for tests. Needs slurm-wlm and munge, but neither root
# nor systemd: tests/local_slurm.sh start FOLDER && export SLURM_CONF=FOLDER/slurm.conf
#
# The nodes are two daemons with two processors and two simulated GPUs each. Jobs of the partition `high` preempt those
# of `low`, which SLURM requeues after up to 60 seconds. Without accounting, so that `sacct` and `--qos` do not work.
set -euo pipefail

fail() {
  echo "error: tests/local_slurm.sh: $*" >&2
  exit 2
}

[[ $# == 2 && $1 =~ ^(start|stop)$ ]] || fail "usage: start FOLDER, or stop FOLDER"
ACTION=$1
FOLDER=$(realpath -m -- "$2")
PATH=$PATH:/usr/sbin
PORT=${LOCAL_SLURM_PORT:-16817}

configure() {
  local user
  user=$(id -un)
  cat >"$FOLDER/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=localhost
SlurmctldPort=$PORT
SlurmUser=$user
SlurmdUser=$user
AuthInfo=socket=$FOLDER/munge.socket,cred_expire=5
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool.%n
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.%n.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
ReturnToService=2
MpiDefault=none
GresTypes=gpu
NodeName=127.0.0.[1-2] NodeHostname=$(hostname -s) Port=$((PORT + 1))-$((PORT + 2)) CPUs=2 RealMemory=8000 Gres=gpu:2
PartitionName=main Nodes=127.0.0.[1-2] Default=YES MaxTime=INFINITE PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=127.0.0.[1-2] MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=127.0.0.[1-2] MaxTime=INFINITE PriorityTier=9 PreemptMode=OFF
CONF
  printf 'Name=gpu File=%s\n' /dev/null /dev/zero >"$FOLDER/gres.conf"
}

start() {
  local program
  for program in munged slurmctld slurmd; do
    command -v "$program" >/dev/null || fail "$program was not found; install slurm-wlm and munge"
  done
  mkdir -p "$FOLDER"/{state,spool.127.0.0.1,spool.127.0.0.2}
  chmod 755 "$FOLDER"
  (umask 077 && head -c 128 /dev/urandom >"$FOLDER/munge.key")
  configure
  munged --force --key-file="$FOLDER/munge.key" --socket="$FOLDER/munge.socket" --pid-file="$FOLDER/munged.pid" \
    --seed-file="$FOLDER/munge.seed" --log-file="$FOLDER/munged.log"
  slurmctld -f "$FOLDER/slurm.conf"
  for node in 127.0.0.{1,2}; do
    slurmd -f "$FOLDER/slurm.conf" -N "$node"
  done
  export SLURM_CONF=$FOLDER/slurm.conf
  for _ in {1..100}; do
    [[ $(sinfo --noheader --partition=main --states=idle --format=%D 2>/dev/null) == 2 ]] && return
    sleep 0.2
  done
  fail "the nodes are not idle after 20 seconds; see the logs in $FOLDER"
}

stop() {
  local file
  SLURM_CONF=$FOLDER/slurm.conf scancel --quiet --user="$(id -un)" || true
  for file in "$FOLDER"/{slurmd.127.0.0.1,slurmd.127.0.0.2,slurmctld,munged}.pid; do
    [[ ! -s $file ]] || kill "$(<"$file")" 2>/dev/null || true
  done
}

"$ACTION"
