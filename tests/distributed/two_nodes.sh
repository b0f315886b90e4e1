#!/usr/bin/env bash
# Two nodes on one machine: two network namespaces joined by a virtual cable, `torchrun` in each, gloo between them.
#
#   sudo tests/distributed/two_nodes.sh FOLDER
#
# Trains the small run of tests/resume on 2 nodes with 1 process each, once whole, once with node 1 killed on the way
# (both nodes must end) and continued, and once on one node with 2 processes: the weights must be the same, bit for bit.
# Needs root, for `ip netns`. PYTHON chooses the interpreter.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mkdir -p "${1:?usage: two_nodes.sh FOLDER}" && cd "$1" && pwd)
python=${PYTHON:-python}
net=lf$$
export OMP_NUM_THREADS=1 PYTHONPATH=$root

for i in 0 1; do
    ip netns add "$net-$i"
done
trap 'for i in 0 1; do ip netns pids "$net-$i" | xargs -r kill -9; ip netns del "$net-$i"; done' EXIT
ip link add "${net}a" netns "$net-0" type veth peer name "${net}b" netns "$net-1"
ip -n "$net-0" addr add 10.77.0.1/24 dev "${net}a"
ip -n "$net-1" addr add 10.77.0.2/24 dev "${net}b"
for i in 0 1; do
    ip -n "$net-$i" link set lo up
done
ip -n "$net-0" link set "${net}a" up
ip -n "$net-1" link set "${net}b" up

options=(model=cnn model.net.width=4 +model.net.dropout=0.5 model.max_epochs=4 model.batch_size=200 metric.num_subsets=3
    metric.subset_size=10 metric.every_n_validations=1 reg.num_sub_batches=4 trainer=ddp trainer.accelerator=cpu)

node() { # node NUMBER RUN
    local card=("${net}a" "${net}b")
    GLOO_SOCKET_IFNAME=${card[$1]} timeout 600 ip netns exec "$net-$1" "$python" -m torch.distributed.run \
        --nnodes=2 --node_rank="$1" --nproc_per_node=1 --master_addr=10.77.0.1 --master_port=29477 \
        "$root/run.py" "${options[@]}" trainer.num_nodes=2 trainer.devices=1 hydra.run.dir="$folder/$2" \
        >>"$folder/$2-node$1.log" 2>&1
}

nodes() { # nodes RUN: both, and their exit codes
    local first second code0=0 code1=0
    node 0 "$1" & first=$!
    node 1 "$1" & second=$!
    wait "$first" || code0=$?
    wait "$second" || code1=$?
    codes="$code0 $code1"
}

same() { # same RUN RUN
    "$python" - "$folder/$1" "$folder/$2" <<'PYTHON'
import sys, torch
one, other = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in sys.argv[1:])
assert all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in one["state_dict"])
PYTHON
}

nodes whole
[ "$codes" = "0 0" ] || { echo "two nodes ended with $codes"; tail "$folder"/whole-node*.log; exit 1; }
echo "2 nodes x 1 process: done"

(
    until grep -q "regularized phase begins" "$folder/parts-node0.log" 2>/dev/null; do sleep 0.1; done
    ip netns pids "$net-1" | xargs kill -9
) &
nodes parts
[[ "$codes" != *0* || "$codes" = *1* ]] && [ ! -e "$folder/parts/result.json" ] || { echo "ended with $codes"; exit 1; }
grep "^Error" "$folder/parts-node0.log"
echo "node 1 killed: both ended, exit codes $codes"
nodes parts
[ "$codes" = "0 0" ] || { echo "continuing ended with $codes"; tail "$folder"/parts-node*.log; exit 1; }
grep "continuing from" "$folder/parts-node0.log"
same parts whole
echo "continued: the weights of the uninterrupted run, bit for bit"

"$python" "$root/run.py" "${options[@]}" trainer.devices=2 hydra.run.dir="$folder/one" >"$folder/one.log" 2>&1
same one whole
echo "1 node x 2 processes: the same weights, bit for bit"
