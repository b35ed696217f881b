#!/usr/bin/env bash
# A Slurm cluster of this one machine, on loopback, from Debian's packages: `one_node_slurm.sh start` or `stop`.
# Jobs of partition `high` preempt those of `low`, which get 60 s to stop and are requeued.
# Exit code: 0 ready, 3 it cannot be set up here (says why), 1 it should work and does not.
set -euo pipefail

CONF=/etc/slurm/slurm.conf
MARK="# Written by tests/e2e/one_node_slurm.sh"
STATE=/var/tmp/one_node_slurm # state, logs and pid files

cannot() { echo "no Slurm here: $1" >&2; exit 3; }
answers() { timeout 10 sinfo --noheader >/dev/null 2>&1; }
is_ours() { grep -qsF "$MARK" "$CONF"; }
owns_nothing_else() { [ ! -e "$CONF" ] || is_ours; }

install_packages() {
  command -v sbatch slurmctld slurmd munged >/dev/null && return
  command -v apt-get >/dev/null || cannot "slurm-wlm is not installed and there is no apt-get to install it"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge; } >"$STATE/apt.log" 2>&1 ||
    cannot "apt-get cannot install slurm-wlm and munge; see $STATE/apt.log"
}

configure() {
  local name node
  name=$(hostname -s)
  node=$(slurmd -C | head -1) # NodeName=... CPUs=... RealMemory=...
  mkdir -p "$(dirname "$CONF")" "$STATE/controller" "$STATE/node"
  cat >"$CONF" <<END
$MARK
ClusterName=one_node
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$STATE/controller
SlurmdSpoolDir=$STATE/node
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd.pid
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$node NodeAddr=127.0.0.1 State=UNKNOWN
PartitionName=low Nodes=$name Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=high Nodes=$name MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
END
}

start_munge() {
  munge --no-input 2>/dev/null | unmunge >/dev/null 2>&1 && return
  install --directory --owner=munge --group=munge --mode=0755 /run/munge
  runuser -u munge -- munged --force || cannot "munged does not start; see /var/log/munge/munged.log"
}

start() {
  if answers; then
    is_ours || cannot "another cluster answers"
    echo "Slurm answers already"
    return
  fi
  [ "$(id -u)" = 0 ] || cannot "only root can install and start it"
  owns_nothing_else || cannot "$CONF is another cluster's, and that cluster does not answer"
  mkdir -p "$STATE"
  install_packages
  configure
  start_munge
  slurmctld
  slurmd
  for _ in $(seq 60); do
    if timeout 10 sinfo --noheader --states=idle 2>/dev/null | grep -q .; then sinfo; return; fi
    sleep 1
  done
  echo "Slurm does not answer; the ends of its logs:" >&2
  tail -n 20 "$STATE"/*.log >&2
  exit 1
}

stop() {
  is_ours || cannot "$CONF is not of this script"
  local pid
  for pid in $(cat "$STATE"/*.pid 2>/dev/null); do
    kill "$pid" 2>/dev/null || continue
    timeout 60 tail --pid="$pid" --follow /dev/null # until it is gone
  done
  rm -rf "$CONF" "$STATE"
}

case "${1:-}" in
  start | stop) "$1" ;;
  *) echo "usage: $0 start|stop" >&2; exit 2 ;;
esac
