"""What Python's kubernetes client does with a cluster: the pod `streams` of the scenarios before is there.

Each part says its name when it has held; an assertion that fails ends all of it."""

from kubernetes import client, config, watch
from kubernetes.stream import stream

NAMESPACE = "default"
LABEL = "of=python"

config.load_kube_config()
core = client.CoreV1Api()


def config_map(name, data):
    metadata = client.V1ObjectMeta(name=name, labels={"of": "python"})
    return client.V1ConfigMap(metadata=metadata, data=data)


def patched(name, kind, body):
    core.patch_namespaced_config_map(name, NAMESPACE, body, _content_type=f"application/{kind}+json")
    return core.read_namespaced_config_map(name, NAMESPACE).data


for name in ("a", "b", "c"):
    core.create_namespaced_config_map(NAMESPACE, config_map(f"python-{name}", {"of": name}))
page = core.list_namespaced_config_map(NAMESPACE, label_selector=LABEL, limit=2)
names = [item.metadata.name for item in page.items]
rest = core.list_namespaced_config_map(NAMESPACE, label_selector=LABEL, limit=2, _continue=page.metadata._continue)
names += [item.metadata.name for item in rest.items]
assert names == ["python-a", "python-b", "python-c"], names
assert not rest.metadata._continue, rest.metadata
print("list")

version = rest.metadata.resource_version
core.create_namespaced_config_map(NAMESPACE, config_map("python-d", {"of": "d"}))
patched("python-d", "merge-patch", {"data": {"of": "changed"}})
core.delete_namespaced_config_map("python-d", NAMESPACE)
seen = []
watcher = watch.Watch()
for event in watcher.stream(
    core.list_namespaced_config_map, NAMESPACE, label_selector=LABEL, resource_version=version, timeout_seconds=30,
):
    seen.append((event["type"], event["object"].metadata.name, event["object"].data["of"]))
    if event["type"] == "DELETED":
        watcher.stop()
expected = [("ADDED", "python-d", "d"), ("MODIFIED", "python-d", "changed"), ("DELETED", "python-d", "changed")]
assert seen == expected, seen
print("watch")

data = patched("python-a", "strategic-merge-patch", {"data": {"more": "yes"}})
assert data == {"of": "a", "more": "yes"}, data
print("strategic merge patch")
operations = [{"op": "replace", "path": "/data/of", "value": "json"}, {"op": "remove", "path": "/data/more"}]
data = patched("python-a", "json-patch", operations)
assert data == {"of": "json"}, data
print("JSON patch")
data = patched("python-a", "merge-patch", {"data": {"of": None, "new": "1"}})
assert data == {"new": "1"}, data
print("merge patch")

said = stream(
    core.connect_get_namespaced_pod_exec, "streams", NAMESPACE, container="server", command=["echo", "by Python"],
    stdout=True, stderr=True, stdin=False, tty=False,
)
assert said == "by Python\n", said
cat = stream(
    core.connect_get_namespaced_pod_exec, "streams", NAMESPACE, container="server", command=["cat"],
    stdout=True, stderr=True, stdin=True, tty=False, _preload_content=False,
)
cat.write_stdin("and back\n")
assert cat.readline_stdout(timeout=20) == "and back"
cat.close()
failing = stream(
    core.connect_get_namespaced_pod_exec, "streams", NAMESPACE, container="server", command=["/testserver", "exit", "7"],
    stdout=True, stderr=True, stdin=False, tty=False, _preload_content=False,
)
failing.run_forever(timeout=20)
assert failing.returncode == 7, failing.returncode
print("exec")

attached = stream(
    core.connect_get_namespaced_pod_attach, "streams", NAMESPACE, container="echo",
    stdout=True, stderr=False, stdin=True, tty=False, _preload_content=False,
)
attached.write_stdin("attached by Python\n")
while attached.readline_stdout(timeout=20) != "attached by Python":
    assert attached.is_open()
attached.close()
print("attach")

log = core.read_namespaced_pod_log("streams", NAMESPACE, container="echo")
assert "attached by Python\n" in log, log
lines = core.read_namespaced_pod_log("streams", NAMESPACE, container="echo", tail_lines=1)
assert log.endswith(lines) and lines.count("\n") == 1, lines
follower = watch.Watch()
for line in follower.stream(core.read_namespaced_pod_log, "streams", NAMESPACE, container="echo"):
    assert log.startswith(line), line
    follower.stop()
print("logs")

core.delete_collection_namespaced_config_map(NAMESPACE, label_selector=LABEL)
left = core.list_namespaced_config_map(NAMESPACE, label_selector=LABEL).items
assert left == [], left
try:
    core.read_namespaced_config_map("python-a", NAMESPACE)
    raise AssertionError("it is still there")
except client.ApiException as error:
    assert error.status == 404 and error.reason == "Not Found", error
print("delete")
