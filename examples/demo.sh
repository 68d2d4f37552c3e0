#!/usr/bin/env bash
# The main job, step by step, on a real cluster. Flags are handed to `causeway up`. Leaves the cluster up.
# With --daemonset agent and DNS server are pods, by node/deploy, of the image IMAGE (make image).
# With DEMO_ETCD=1 the cluster keeps its state in a real etcd that this script starts, instead of the built-in store.
set -euo pipefail
cd "$(dirname "$0")/.."
STATE_DIR=${STATE_DIR:-/var/lib/causeway}
CAUSEWAY=$PWD/target/debug/causeway
IMAGE=${IMAGE:-target/causeway-image.tar}
NODES=3
export KUBECONFIG=$STATE_DIR/admin.kubeconfig

step=0
step() { step=$((step + 1)); printf '\n\033[1m%d. %s\033[0m\n' "$step" "$*"; }
show() { printf '   $ %s\n' "$*"; "$@" | sed 's/^/     /'; }
good() { printf '   ✓ %s\n' "$*"; }
fail() { printf '   ✗ %s\n' "$*" >&2; exit 1; }

# await SECONDS WHAT COMMAND…: runs COMMAND until it succeeds.
await() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || fail "$what: not within the time given"
    sleep 0.1
  done
}
phase_is() { [ "$(kubectl get pod "$1" -o 'jsonpath={.status.phase}')" = "$2" ]; }

daemonset=
if [ "${1:-}" = --daemonset ]; then
  daemonset=1
  shift
  [ -f "$IMAGE" ] || fail "no $IMAGE: make image builds it"
  set -- --agent none --leases kubernetes "$@"
fi

if [ -n "${DEMO_ETCD:-}" ]; then
  step "a real etcd beside the cluster"
  etcd=$(command -v etcd || echo "$PWD/target/tools/usr/bin/etcd")
  [ -x "$etcd" ] || fail "no etcd: ./setup.sh test unpacks Debian's"
  data=$(mktemp -d /tmp/causeway-demo-etcd.XXXXXX)
  "$etcd" --data-dir "$data" --listen-client-urls http://0.0.0.0:12379 --advertise-client-urls http://172.30.0.1:12379 \
    --listen-peer-urls http://127.0.0.1:12380 --initial-cluster default=http://127.0.0.1:12380 \
    --initial-advertise-peer-urls http://127.0.0.1:12380 >"$data/log" 2>&1 &
  echo $! >"$data/pid"
  set -- --etcd http://172.30.0.1:12379 "$@"
  good "$("$etcd" --version | head -1), pid $(cat "$data/pid"), data in $data (make down leaves it: kill it after)"
fi

step "a cluster of $NODES nodes"
up_log=$(mktemp /tmp/causeway-demo-up.XXXXXX)
"$CAUSEWAY" up --nodes $NODES --state-dir "$STATE_DIR" "$@" | tee "$up_log"
up_seconds=$(sed -n 's/.*nodes Ready after \([0-9.]*\) s.*/\1/p' "$up_log")
rm -f "$up_log"
show kubectl get nodes -o wide

if [ -n "$daemonset" ]; then
  step "Causeway on these nodes, by its manifests"
  show "$CAUSEWAY" image import "$IMAGE" --state-dir "$STATE_DIR"
  show kubectl apply -f node/deploy/base/namespace.yaml
  show kubectl create configmap causeway-api-server -n causeway \
    --from-literal=KUBERNETES_SERVICE_HOST=172.30.0.1 --from-literal=KUBERNETES_SERVICE_PORT=6443
  show kubectl apply -k node/deploy/overlays/vxlan
  show kubectl rollout status -n causeway daemonset/causeway-node --timeout=90s
  show kubectl rollout status -n causeway daemonset/causeway-dns --timeout=90s
  show kubectl wait node --all --for=condition=Ready --timeout=30s
  good "the nodes are Ready, and what programs them are pods"
fi

step "a Deployment of three, a ClusterIP Service, a NodePort Service"
show kubectl apply -f examples/hello.yaml
show kubectl rollout status deployment/hello --timeout=60s
show kubectl get pods -o wide -l app=hello
show kubectl get services
spread=$(kubectl get pods -l app=hello -o 'jsonpath={range .items[*]}{.spec.nodeName}{"\n"}{end}' | sort -u | wc -l)
[ "$spread" = 3 ] || fail "the pods stand on $spread nodes"
good "one pod on each node, each with an address of its node's subnet"

step "the Service by ClusterIP and by name, from a pod on each node"
show kubectl apply -f examples/clients.yaml
for node in 1 2 3; do
  await 60 "client-node-$node" phase_is "client-node-$node" Succeeded
  for how in by-ip by-name; do
    answers=$(kubectl logs "client-node-$node" -c $how)
    summary=$(tail -1 <<<"$answers")
    printf '   node-%s %-8s %s\n' "$node" "$how" "$summary"
    grep -q 'failed=0' <<<"$summary" || fail "requests failed: kubectl logs client-node-$node -c $how"
    seen=$(awk '$2 == 200 {print $3}' <<<"$answers" | sort -u | wc -l)
    # Each request picks at random: forty miss one of three pods once in three million runs.
    [ "$seen" = 3 ] || fail "only $seen of three pods answered"
  done
done
good "every node reaches the pods by both"

step "the Service by NodePort on every node's address, from outside the cluster"
for node in 11 12 13; do
  url=http://172.30.0.$node:30080/
  seen=$(for _ in $(seq 40); do curl -sS --max-time 5 "$url" | awk '/^hostname:/ {print $2}'; done | sort | uniq -c | awk '{printf "%s ×%s  ", $2, $1}')
  printf '   %s  %s\n' "$url" "$seen"
  [ "$(wc -w <<<"$seen")" = 6 ] || fail "$url: not all three pods answered"
done
good "each node answers for all pods"

if [ -n "$daemonset" ]; then
  step "the pod network's leases, in Node objects as flannel keeps them"
  annotation='.metadata.annotations.flannel\.alpha\.coreos\.com'
  show kubectl get nodes -o "custom-columns=NODE:.metadata.name,SUBNET:.spec.podCIDR,ADDRESS:$annotation/public-ip,DATA:$annotation/backend-data"
else
  step "the pod network's leases, in etcd as flannel keeps them"
  if [ -n "${DEMO_ETCD:-}" ]; then
    etcdctl=(etcdctl --endpoints http://172.30.0.1:12379)
  else
    etcdctl=(etcdctl --endpoints https://127.0.0.1:2379 --cacert "$STATE_DIR/pki/ca.crt" --cert "$STATE_DIR/pki/admin.crt" --key "$STATE_DIR/pki/admin.key")
  fi
  export ETCDCTL_API=3
  show "${etcdctl[@]}" get --prefix /coreos.com/network
fi

step "a pod deleted under load: a hundred requests a second from a pod, while one of the three is replaced"
kubectl delete pod load --ignore-not-found >/dev/null
show kubectl apply -f examples/load.yaml
await 30 "the load pod" phase_is load Running
victim=$(kubectl get pods -l app=hello -o 'jsonpath={.items[0].metadata.name}')
answered_by() { kubectl logs load | awk -v pod="$1" '$3 == pod {found = 1} END {exit !found}'; }
await 20 "requests" answered_by "$victim"
show kubectl delete pod "$victim" --wait=false
replaced() { [ "$(kubectl get pods -l app=hello -o name | wc -l)" = 3 ] && ! kubectl get pod "$victim"; }
await 60 "the replacement" replaced
show kubectl rollout status deployment/hello --timeout=60s
new=$(kubectl get pods -l app=hello --sort-by=.metadata.creationTimestamp -o 'jsonpath={.items[-1:].metadata.name}')
await 20 "requests to the new pod" answered_by "$new"
requests=$(kubectl logs load | grep -c . || true)
failed=$(kubectl logs load | awk '$2 != 200' | grep -c . || true)
kubectl delete pod load --wait=false >/dev/null
printf '   %s requests, %s failed\n' "$requests" "$failed"
[ "$failed" = 0 ] || fail "requests failed"
good "$victim was replaced by $new and no request failed"

step "figures of this run"
[ -z "$up_seconds" ] || printf '   %-50s     %6.1f s    (goal 5 s)\n' "causeway up --nodes $NODES to all nodes Ready" "$up_seconds"
"$PWD/target/debug/figures" || true

cat <<DONE

The cluster is up. What to try next:

  export KUBECONFIG=$KUBECONFIG
  kubectl get pods -A -o wide
  kubectl logs client-node-2 by-name
  kubectl describe service hello
  ip netns exec causeway-node-1 ip route         # what a node's kernel knows
  ip netns exec causeway-node-1 nft list table ip causeway-proxy
  target/debug/causeway status
  make down                                      # removes all of it
DONE
