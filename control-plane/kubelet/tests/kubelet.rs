//! A whole kubelet: an API server in memory, real containers, Debian's CNI plugins, everything in a network and mount
//! namespace of its own.

// The API server in memory is the one that the controllers are tried on: a second one would be a second truth.
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "the controllers' tests use more of it, and own it"
)]
#[path = "../../controllers/tests/cluster/fake/mod.rs"]
mod fake;

mod privileged {
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use kubelet::Config;
    use kubelet::cgroup::Cgroup;
    use serde_json::{Value, json};
    use tokio::task::JoinHandle;
    use tokio_util::sync::CancellationToken;

    use crate::fake::{FakeApi, Faults, text};

    const PLUGINS: &str = "/usr/lib/cni";
    const INSIDE: &str = "CWT_KUBELET_INSIDE";

    /// Runs the test again in namespaces of its own; true inside them.
    fn isolated(test: &str) -> bool {
        if std::env::var_os(INSIDE).is_some() {
            return true;
        }
        if !nix::unistd::geteuid().is_root() || !Path::new(PLUGINS).join("bridge").exists() {
            eprintln!("SKIPPED {test}: needs root and Debian's containernetworking-plugins");
            return false;
        }
        let own = std::env::current_exe().expect("this test is a program");
        let status = Command::new("unshare")
            .args(["--net", "--mount", "--"])
            .arg(own)
            .args(["--exact", &format!("privileged::{test}"), "--nocapture"])
            .env(INSIDE, "1")
            .status()
            .expect("unshare is part of util-linux");
        assert!(status.success(), "{test} failed in its namespaces");
        false
    }

    fn ip(arguments: &str) {
        let status = Command::new("ip")
            .args(arguments.split(' '))
            .status()
            .expect("ip is there");
        assert!(status.success(), "ip {arguments}");
    }

    struct Node {
        api: Arc<FakeApi>,
        config: Config,
        running: Option<(CancellationToken, JoinHandle<()>)>,
        dir: PathBuf,
    }

    impl Node {
        fn new(name: &str) -> Self {
            // What the kubelet says, with RUST_LOG=kubelet=debug.
            let filter = tracing_subscriber::EnvFilter::from_default_env();
            let _ = tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_writer(std::io::stderr)
                .with_ansi(false)
                .try_init();
            ip("link set lo up");
            fs::create_dir_all("/run/netns").expect("created");
            nix::mount::mount(
                Some("tmpfs"),
                "/run/netns",
                Some("tmpfs"),
                nix::mount::MsFlags::empty(),
                None::<&str>,
            )
            .expect("a private /run/netns");
            let name = format!("cwt-{name}-{}", std::process::id());
            let dir = Path::new("/var/tmp").join(&name);
            fs::create_dir_all(dir.join("cni")).expect("created");
            let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
            let cgroup2 = mounts
                .lines()
                .find_map(|line| line.split(' ').nth(1).filter(|_| line.contains(" cgroup2 ")))
                .expect("cgroup v2 is mounted");
            certificates(&dir);
            // Two levels, as in a cluster: what is above the node must not stay either.
            let cgroup = Path::new(cgroup2).join(&name).join("node-1");
            let config: Config = serde_json::from_value(json!({
                "nodeName": "node-1", "kubeconfig": "/nonexistent", "stateDir": dir.join("kubelet"),
                "nodeIp": "127.0.0.1", "clusterDns": ["10.96.0.10"], "cniConfDir": dir.join("cni"),
                "cniBinDirs": [PLUGINS], "cgroup": cgroup,
                "shim": env!("CARGO_BIN_EXE_causeway-shim"), "cert": dir.join("node.crt"),
                "key": dir.join("node.key"), "clientCa": dir.join("ca.crt"),
            }))
            .expect("a valid configuration");
            Self {
                api: FakeApi::new(Faults::default()),
                config,
                running: None,
                dir,
            }
        }

        fn start(&mut self) {
            let shutdown = CancellationToken::new();
            let run = kubelet::run_with(self.config.clone(), self.api.client(), shutdown.clone());
            let task = tokio::spawn(async move { run.await.expect("the kubelet runs") });
            self.running = Some((shutdown, task));
        }

        async fn stop(&mut self) {
            let (shutdown, task) = self.running.take().expect("it runs");
            shutdown.cancel();
            task.await.expect("it ends in order");
        }

        /// What the agent does when it can serve.
        fn write_network(&self) {
            let network = json!({"cniVersion": "1.0.0", "name": "cwt", "plugins": [{
                "type": "bridge", "bridge": "cwt0", "isGateway": true,
                "ipam": {"type": "host-local", "dataDir": self.dir.join("ipam"),
                         "ranges": [[{"subnet": "10.244.7.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]});
            fs::write(self.dir.join("cni/10-cwt.conflist"), network.to_string()).expect("written");
        }

        fn create_pod(&self, name: &str, spec: Value) {
            let mut spec = spec;
            spec["nodeName"] = json!("node-1");
            let metadata = json!({"name": name, "namespace": "default"});
            self.api
                .create("pods", json!({"metadata": metadata, "spec": spec}));
        }

        fn pod(&self, name: &str) -> Option<Value> {
            self.api.get("pods", "default", name)
        }

        async fn await_pod(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Duration {
            let begin = Instant::now();
            while !self.pod(name).is_some_and(|pod| holds(&pod)) {
                assert!(
                    begin.elapsed() < Duration::from_secs(20),
                    "{name} never {what}: {:#?}",
                    self.story(name)
                );
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            eprintln!("{name} {what} after {:?}", begin.elapsed());
            begin.elapsed()
        }

        async fn await_absence(&self, name: &str) -> Duration {
            let begin = Instant::now();
            while self.pod(name).is_some() {
                assert!(
                    begin.elapsed() < Duration::from_secs(20),
                    "{name} stays: {:#?}",
                    self.story(name)
                );
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            eprintln!("{name} gone after {:?}", begin.elapsed());
            begin.elapsed()
        }

        /// The pod's status and every event, for a failed test.
        fn story(&self, name: &str) -> (Option<Value>, Vec<String>) {
            let events = self.api.all("events");
            let events = events
                .iter()
                .map(|e| format!("{} {}", text(e, "/reason"), text(e, "/message")));
            (self.pod(name).map(|pod| pod["status"].clone()), events.collect())
        }

        /// What is on the machine of any pod.
        fn remains(&self) -> Vec<String> {
            let list = |path: PathBuf| {
                let entries = fs::read_dir(path).into_iter().flatten().flatten();
                entries
                    .map(|e| e.path().display().to_string())
                    .collect::<Vec<_>>()
            };
            let directories = |path: PathBuf| {
                list(path)
                    .into_iter()
                    .filter(|path| Path::new(path).is_dir())
                    .collect::<Vec<_>>()
            };
            let leases = list(self.dir.join("ipam/cwt"))
                .into_iter()
                .filter(|path| path.contains("10.244."));
            [
                list("/run/netns".into()),
                list(self.config.state_dir.join("pods")),
                list(self.config.state_dir.join("containers")),
                list(self.config.state_dir.join("log/pods")),
                directories(self.config.cgroup.join("pods")),
            ]
            .concat()
            .into_iter()
            .chain(leases)
            .collect()
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            kubelet::cleanup(&self.config.state_dir, &self.config.cgroup).expect("cleaned up");
            let above = self.config.cgroup.parent().expect("two levels");
            Cgroup::at(above)
                .expect("a cgroup")
                .remove()
                .expect("no cgroup is in use");
            fs::remove_dir_all(&self.dir).expect("nothing is mounted any more");
            let name = above.file_name().expect("a name");
            let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
            let left: Vec<PathBuf> = hierarchies
                .map(|entry| entry.path().join(name))
                .filter(|path| path.exists())
                .collect();
            assert_eq!(left, Vec::<PathBuf>::new());
        }
    }

    /// An authority and the kubelet's certificate from it.
    fn certificates(dir: &Path) {
        let authority_key = rcgen::KeyPair::generate().expect("a key");
        let mut authority = rcgen::CertificateParams::default();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_cert = authority.self_signed(&authority_key).expect("signed");
        let issuer = rcgen::Issuer::new(authority, authority_key);
        fs::write(dir.join("ca.crt"), authority_cert.pem()).expect("written");
        for (name, group) in [
            ("node", None),
            ("admin", Some("system:masters")),
            ("other", Some("system:nodes")),
        ] {
            let key = rcgen::KeyPair::generate().expect("a key");
            let mut leaf =
                rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("valid parameters");
            if let Some(group) = group {
                leaf.distinguished_name
                    .push(rcgen::DnType::OrganizationName, group);
            }
            let cert = leaf.signed_by(&key, &issuer).expect("signed");
            fs::write(dir.join(format!("{name}.crt")), cert.pem()).expect("written");
            fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).expect("written");
        }
    }

    fn server(readiness: bool) -> Value {
        let mut container = json!({
            "name": "server", "image": "causeway/testserver:v1", "args": ["serve", "--http", ":8080"],
            "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            "lifecycle": {"preStop": {"httpGet": {"path": "/delay?ms=300", "port": 8080}}},
        });
        if readiness {
            container["readinessProbe"] = json!({
                "httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1
            });
        }
        json!({"containers": [container], "volumes": [{"name": "scratch", "emptyDir": {}}],
               "terminationGracePeriodSeconds": 5})
    }

    fn request(address: &str, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect((address, 8080)).expect("the pod answers");
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
    }

    /// Process 1 of a PID namespace gets no SIGTERM before it has asked for it: waits until it serves.
    async fn await_server(address: &str) {
        let begin = Instant::now();
        while TcpStream::connect((address, 8080)).is_err() {
            assert!(
                begin.elapsed() < Duration::from_secs(10),
                "{address} does not serve"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn condition<'a>(object: &'a Value, wanted: &str) -> &'a Value {
        let conditions = object["status"]["conditions"].as_array();
        let found = conditions.and_then(|list| list.iter().find(|c| c["type"] == wanted));
        found.unwrap_or(&Value::Null)
    }

    fn is_ready(pod: &Value) -> bool {
        condition(pod, "Ready")["status"] == "True"
    }

    fn is_running(pod: &Value) -> bool {
        pod["status"]["phase"] == "Running"
    }

    fn curl(dir: &Path, identity: &str, path: &str) -> String {
        let file = |end| dir.join(format!("{identity}.{end}"));
        let output = Command::new("curl")
            .args(["-s", "-k", "--max-time", "10", "--cert"])
            .arg(file("crt"))
            .arg("--key")
            .arg(file("key"))
            .arg(format!("https://127.0.0.1:10250{path}"))
            .output()
            .expect("curl is there");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pods_life_from_node_ready_to_nothing_left() {
        if !isolated("a_pods_life_from_node_ready_to_nothing_left") {
            return;
        }
        let mut node = Node::new("life");
        node.start();
        let known = |node: &Node, status: &str| {
            let object = node.api.get("nodes", "", "node-1");
            object.is_some_and(|object| condition(&object, "Ready")["status"] == status)
        };
        node.api
            .eventually("the node is registered, not ready", |_| known(&node, "False"))
            .await;
        let begin = Instant::now();
        node.write_network();
        node.api
            .eventually("the node is ready", |_| known(&node, "True"))
            .await;
        eprintln!(
            "node ready {:?} after the CNI configuration came",
            begin.elapsed()
        );

        node.create_pod("web", server(true));
        node.await_pod("web", "running", is_running).await;
        node.await_pod("web", "ready", is_ready).await;
        let pod = node.pod("web").expect("there");
        let address = text(&pod, "/status/podIP").to_owned();
        assert!(
            request(&address, "GET", "/").contains("hostname: web"),
            "{pod:#?}"
        );
        request(&address, "POST", "/readyz?value=false");
        node.await_pod("web", "unready", |pod| !is_ready(pod)).await;
        request(&address, "POST", "/readyz?value=true");
        node.await_pod("web", "ready again", is_ready).await;

        let logs =
            tokio::task::block_in_place(|| curl(&node.dir, "admin", "/containerLogs/default/web/server"));
        assert!(logs.contains("listening on tcp [::]:8080"), "{logs:?}");
        let refused = tokio::task::block_in_place(|| curl(&node.dir, "other", "/pods"));
        assert!(refused.starts_with("Forbidden"), "{refused:?}");

        let container = text(&pod, "/status/containerStatuses/0/containerID").to_owned();
        node.stop().await;
        assert!(
            request(&address, "GET", "/").contains("hostname: web"),
            "containers outlive the kubelet"
        );
        node.start();
        node.api
            .eventually("the kubelet is back", |_| known(&node, "True"))
            .await;
        node.create_pod("second", server(false));
        node.await_pod("second", "running", is_running).await;
        let second = node.pod("second").expect("there");
        await_server(text(&second, "/status/podIP")).await;
        let pod = node.pod("web").expect("there");
        assert_eq!(text(&pod, "/status/containerStatuses/0/containerID"), container);
        assert!(is_ready(&pod));

        for name in ["web", "second"] {
            node.api.delete("pods", "default", name, json!({}));
        }
        let web = node.await_absence("web").await;
        assert!(web > Duration::from_millis(300), "preStop comes before SIGTERM");
        node.await_absence("second").await;
        assert_eq!(node.remains(), Vec::<String>::new());
        node.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_run_says_why() {
        if !isolated("what_cannot_run_says_why") {
            return;
        }
        let mut node = Node::new("why");
        node.write_network();
        node.start();
        let one = |container: Value| {
            let mut container = container;
            container["name"] = json!("c");
            json!({"containers": [container], "terminationGracePeriodSeconds": 1})
        };
        let image = "causeway/testserver:v1";
        node.create_pod("absent", one(json!({"image": "nginx"})));
        node.create_pod(
            "never",
            one(json!({"image": "nginx", "imagePullPolicy": "Never"})),
        );
        node.create_pod("command", one(json!({"image": image, "command": ["/no-such"]})));
        node.create_pod(
            "crash",
            one(json!({"image": image, "args": ["fetch", "http://127.0.0.1:1/"]})),
        );
        let reference = json!({"configMapRef": {"name": "absent"}});
        node.create_pod("config", one(json!({"image": image, "envFrom": [reference]})));
        let waiting = |pod: &Value| text(pod, "/status/containerStatuses/0/state/waiting/reason").to_owned();
        for (name, reason) in [
            ("absent", "ErrImagePull"),
            ("never", "ErrImageNeverPull"),
            ("command", "CrashLoopBackOff"),
            ("crash", "CrashLoopBackOff"),
            ("config", "CreateContainerConfigError"),
        ] {
            node.await_pod(name, reason, |pod| waiting(pod) == reason).await;
        }
        let crash = node.pod("crash").expect("there");
        let last = &crash["status"]["containerStatuses"][0]["lastState"]["terminated"];
        assert_eq!(
            (&last["exitCode"], &last["reason"]),
            (&json!(1), &json!("Error")),
            "{crash:#?}"
        );

        let has_event = |reason: &str| {
            node.api
                .all("events")
                .iter()
                .any(|e| text(e, "/reason") == reason)
        };
        node.api
            .eventually("back-off is told", |_| has_event("BackOff"))
            .await;

        let mut done = one(json!({"image": image, "args": ["sleep", "0"]}));
        done["restartPolicy"] = json!("Never");
        node.create_pod("done", done);
        node.await_pod("done", "succeeded", |pod| pod["status"]["phase"] == "Succeeded")
            .await;
        for name in ["absent", "never", "command", "crash", "config", "done"] {
            node.api.delete("pods", "default", name, json!({}));
        }
        for name in ["absent", "never", "command", "crash", "config", "done"] {
            node.await_absence(name).await;
        }
        assert_eq!(node.remains(), Vec::<String>::new());
        node.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn init_containers_are_known_again_by_the_next_kubelet() {
        if !isolated("init_containers_are_known_again_by_the_next_kubelet") {
            return;
        }
        let mut node = Node::new("init");
        node.write_network();
        node.start();
        let run = |name: &str, words: &[&str]| json!({"name": name, "image": "causeway/testserver:v1", "args": words});
        let mut sidecar = run("sidecar", &["serve", "--http", ":8081"]);
        sidecar["restartPolicy"] = json!("Always");
        let spec = |second: &Value| {
            json!({"initContainers": [run("first", &["sleep", "0"]), sidecar, second],
                   "containers": [run("main", &["serve", "--http", ":8080"])], "terminationGracePeriodSeconds": 5})
        };
        node.create_pod("done", spec(&run("second", &["sleep", "0"])));
        node.create_pod("held", spec(&run("second", &["sleep", "infinity"])));
        let statuses = |pod: &Value| {
            let list = |name: &str| pod["status"][name].as_array().cloned().unwrap_or_default();
            let all = [list("initContainerStatuses"), list("containerStatuses")].concat();
            let state = |one: &Value| {
                let mut states = one["state"].as_object().into_iter().flatten();
                let (state, why) = states
                    .next()
                    .map(|(name, state)| (name.clone(), text(state, "/reason").to_owned()))?;
                Some(format!(
                    "{} {state} {why} {} {}",
                    text(one, "/name"),
                    one["ready"],
                    one["restartCount"]
                ))
            };
            all.iter().filter_map(state).collect::<Vec<_>>()
        };
        let done = [
            "first terminated Completed true 0",
            "sidecar running  true 0",
            "second terminated Completed true 0",
            "main running  true 0",
        ];
        let held = [
            "first terminated Completed true 0",
            "sidecar running  true 0",
            "second running  false 0",
            "main waiting PodInitializing false 0",
        ];
        node.await_pod("done", "running", |pod| statuses(pod) == done)
            .await;
        node.await_pod("held", "held", |pod| statuses(pod) == held).await;
        let ids = |name: &str| {
            let pod = node.pod(name).expect("there");
            let list = |field: &str| pod["status"][field].as_array().cloned().unwrap_or_default();
            let all = [list("initContainerStatuses"), list("containerStatuses")].concat();
            all.iter()
                .map(|one| text(one, "/containerID").to_owned())
                .collect::<Vec<_>>()
        };
        let before = (ids("done"), ids("held"));
        assert_eq!(
            before.1.iter().filter(|id| !id.is_empty()).count(),
            3,
            "{before:?}"
        );

        node.stop().await;
        node.start();
        node.create_pod("later", server(false));
        node.await_pod("later", "running", is_running).await;
        let now = |name: &str| statuses(&node.pod(name).expect("there"));
        assert_eq!(
            (now("done"), now("held")),
            (done.map(str::to_owned).to_vec(), held.map(str::to_owned).to_vec())
        );
        let after = |name: &str| {
            let pod = node.pod(name).expect("there");
            text(&pod, "/status/initContainerStatuses/2/containerID").to_owned()
        };
        assert_eq!(
            (after("done"), after("held")),
            (before.0[2].clone(), before.1[2].clone())
        );

        for name in ["done", "held", "later"] {
            node.api.delete("pods", "default", name, json!({}));
        }
        for name in ["done", "held", "later"] {
            node.await_absence(name).await;
        }
        assert_eq!(node.remains(), Vec::<String>::new());
        node.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn orphans_go_when_the_kubelet_comes_back() {
        if !isolated("orphans_go_when_the_kubelet_comes_back") {
            return;
        }
        let mut node = Node::new("orphan");
        node.write_network();
        node.start();
        node.create_pod("web", server(false));
        node.await_pod("web", "running", is_running).await;
        node.stop().await;
        node.api
            .delete("pods", "default", "web", json!({"gracePeriodSeconds": 0}));
        assert_ne!(node.remains(), Vec::<String>::new());
        node.start();
        let begin = Instant::now();
        while !node.remains().is_empty() {
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "left: {:#?}",
                node.remains()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        eprintln!("orphans gone after {:?}", begin.elapsed());
        node.stop().await;
    }
}
