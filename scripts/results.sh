#!/usr/bin/env bash
# Every number of the README, measured again: scripts/results.sh [SECTION ...]
#
# Without a section it lists them with what they cost on two CPU cores; `all` (2 h 25 min) runs those of the
# README: first the timed ones, one after another on a machine that must be quiet, then the others, two at a
# time, each with its own log. MNIST is needed by those marked *: SIGNAX_MNIST_DIR, or it is downloaded.
# Results: runs/results/.
#
#   timed
#   kernels    3 min   bench: one worker's kernels and steps at 10 million coordinates
#   network   12 min   bench: four processes on the loopback, at 1 Gbit/s and at 100 Mbit/s (Linux, root)
#   race      40 min   bench: a transformer's time to a target at three bandwidths (Linux, root)
#   soak       9 min   20,000 steps on two processes of which one is killed every 2,000 (Linux)
#   not timed
#   methods  * 50 min   every method on MNIST: how to choose, docs/methods.md, the first picture
#   label    * 22 min   MNIST by label: the table of runs, three seeds each
#   figures  * 16 min   the paper's figures and claims
#   mnist    *  3 min   MNIST shuffled: Signum with three seeds, dense SGD with one
#   weights    1 min   who follows the weights of the workers' losses, and who needs a schedule
#   digits     1 min   getting started: accuracy, bits, megabytes
#   timed, for docs/ alone
#   sizes     10 min   bench: other sizes of the kernels, and an exchange of 195 leaves, for docs/wire.md
#   others    50 min   bench: time to the target for more runs, for docs/operations.md
set -euo pipefail
cd "$(dirname "$0")/.."
results=runs/results
timed="kernels network race soak"
untimed="methods label figures mnist weights digits"  # the longest first
sections="$timed $untimed sizes others"

run() { # one line that says what runs, then the command
  printf '\n$ %s\n' "$*"
  "$@"
}

digits() {
  run signax train --workdir=$results/digits --overwrite
}

weights() {
  run signax weights | tee $results/weights.md
}

kernels() {
  run signax bench --parts=kernels --sizes=1e7 --workdir=$results/kernels
}

network() {
  local bench=(signax bench --processes=4 --quick --parameters=10500000 --leaves=8 --seconds=120
    "--only=majority;ssdm")
  run "${bench[@]}" --rounds=15 --workdir=$results/loopback
  run "${bench[@]}" --rounds=9 --bandwidth=1gbit --workdir=$results/1gbit
  run "${bench[@]}" --rounds=9 --bandwidth=100mbit --workdir=$results/100mbit
}

race() {
  run signax bench --to_accuracy --config=configs/bytes.py --target=3.8 --timed_steps=16 --budget=400 \
    --runs=adamw,adamw_bfloat16,power_sgd,distributed_lion,local_vote \
    --bandwidths=loopback,100mbit,20mbit --workdir=$results/race
}

soak() {
  run python3 scripts/soak.py --workdir=$results/soak
}

label() {
  local run
  for run in signum ssdm majority_vote ssdm_shared sgd ssdm_blocks double_squeeze plain_sgd; do
    run signax train --config=configs/mnist_by_label.py:$run --seeds=0,1,2 \
      --workdir=$results/label/$run --overwrite
  done
  run signax compare $results/label/*
}

mnist() {
  run signax train --config=configs/mnist.py:signum --seeds=0,1,2 --workdir=$results/mnist_signum --overwrite
  run signax train --config=configs/mnist.py:sgd --workdir=$results/mnist_sgd --overwrite
  run signax compare $results/mnist_*
}

figures() {
  run signax figures all --workdir=$results/figures
}

methods() {
  run signax figures methods --workdir=$results/figures
}

sizes() {
  run signax bench --parts=kernels --quick --sizes=1e6,1e8 --leaves=8 --rounds=9 --seconds=60 \
    --workdir=$results/sizes
  run signax bench --processes=2 --quick --parameters=10500000 --leaves=195 --rounds=15 --seconds=60 \
    "--only=flat;majority;ssdm" --workdir=$results/leaves
}

others() {
  run signax bench --to_accuracy --config=configs/bytes.py --target=3.8 --timed_steps=16 --budget=400 \
    --runs=adamw,adamw_low_rank,signum,one_bit_adam,ssdm_shared,double_squeeze,local_squeeze \
    --bandwidths=loopback,1gbit,100mbit --workdir=$results/others
}

if [ $# -eq 0 ]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0"
  exit
fi
mkdir -p $results
if [ "$*" = all ]; then
  "$0" $timed
  printf '%s\n' $untimed | xargs -P 2 -I{} bash -c '"$0" "$1" >"$2/$1.log" 2>&1' "$0" {} $results
  exit
fi
for section; do
  case " $sections " in
    *" $section "*) ;;
    *) echo "scripts/results.sh: no section $section; there are: $sections" >&2; exit 2 ;;
  esac
done
for section; do
  printf '\n== %s, from %s, at %s\n' "$section" "$(git describe --always --dirty 2>/dev/null || echo a release)" \
    "$(date +%T)"
  "$section"
done
