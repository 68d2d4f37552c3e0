//! The shim and the runtime with real containers of the built-in images.

mod privileged {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use jiff::Timestamp;
    use kubelet::cgroup::Cgroup;
    use kubelet::exec::{Exec, ExecError};
    use kubelet::images::ImageStore;
    use kubelet::oci::{BindMount, ContainerSpec, Resources, Security, oci_config};
    use kubelet::pod::sub_path::SubPath;
    use kubelet::process::Signal;
    use kubelet::runtime::{Container, Runtime};
    use kubelet::shim::attach::{Kind, header};
    use kubelet::shim::state::{ContainerDir, ContainerRequest, Stdin};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// One node's worth of directories and cgroups, removed at the end.
    struct Node {
        state: PathBuf,
        cgroup: Cgroup,
        runtime: Runtime,
        images: ImageStore,
    }

    impl Node {
        fn new(name: &str) -> Option<Self> {
            if !nix::unistd::geteuid().is_root() {
                eprintln!("SKIPPED {name}: needs root to make containers");
                return None;
            }
            let mounts = fs::read_to_string("/proc/self/mounts").expect("proc is mounted");
            let mount = mounts
                .lines()
                .find_map(|line| line.split(' ').nth(1).filter(|_| line.contains(" cgroup2 ")))
                .expect("cgroup v2 is mounted");
            let name = format!("cwt-{name}-{}", std::process::id());
            let state = Path::new("/var/tmp").join(&name);
            let cgroup = Cgroup::at(&Path::new(mount).join(&name)).expect("a cgroup below the mount");
            let shim = Path::new(env!("CARGO_BIN_EXE_causeway-shim"));
            let runtime = Runtime::open(shim, &state.join("containers")).expect("the runtime opens");
            let images = ImageStore::open(&state.join("images")).expect("the images open");
            Some(Self {
                state,
                cgroup,
                runtime,
                images,
            })
        }

        fn request(&self, id: &str) -> ContainerRequest {
            let image = self
                .images
                .find("causeway/testserver:v1")
                .expect("readable")
                .expect("built in");
            ContainerRequest {
                id: id.to_owned(),
                pod_namespace: "default".to_owned(),
                pod_name: "pod".to_owned(),
                pod_uid: "uid".to_owned(),
                container: "main".to_owned(),
                attempt: 0,
                image: "causeway/testserver:v1".to_owned(),
                image_id: image.id,
                image_rootfs: image.rootfs,
                cgroup: self.cgroup.directory().join("pods/uid").join(id),
                log: self.state.join("log").join(format!("{id}.log")),
                terminal: false,
                stdin: Stdin::Closed,
                termination_log: self.state.join("termination-log"),
                falls_back_to_log: false,
                shares_pids: false,
                sub_paths: Vec::new(),
                created_at: Timestamp::now(),
            }
        }

        fn spec(&self, id: &str, args: &[&str]) -> ContainerSpec {
            ContainerSpec {
                args: args.iter().map(|&word| word.to_owned()).collect(),
                terminal: false,
                env: vec!["PATH=/:/bin".to_owned()],
                cwd: "/".to_owned(),
                hostname: "pod".to_owned(),
                netns: None,
                ipc: None,
                host_pid: false,
                shared_pids: None,
                sysctls: std::collections::BTreeMap::new(),
                host_ipc: false,
                rootfs: self.runtime.container_dir(id).rootfs(),
                mounts: Vec::new(),
                devices: Vec::new(),
                cgroup_path: self.cgroup.oci_path().join("pods/uid").join(id),
                resources: Resources::default(),
                security: Security::default(),
                oom_score_adj: None,
            }
        }

        async fn start(&self, id: &str, args: &[&str]) -> Container {
            let config = oci_config(&self.spec(id, args));
            let begin = Instant::now();
            let container = self
                .runtime
                .start(self.request(id), &config)
                .await
                .expect("the container starts");
            eprintln!("{id}: started in {:?}", begin.elapsed());
            container
        }

        fn log(&self, id: &str) -> String {
            fs::read_to_string(self.state.join("log").join(format!("{id}.log"))).unwrap_or_default()
        }

        /// Texts of the log without times.
        fn log_texts(&self, id: &str) -> Vec<String> {
            self.log(id)
                .lines()
                .map(|line| line.split_once(' ').expect("a time").1.to_owned())
                .collect()
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            self.cgroup.kill_all(Duration::from_secs(5));
            for container in self.runtime.adopt().unwrap_or_default() {
                self.runtime.destroy(&container.request).expect("destroyed");
            }
            self.cgroup.remove().expect("no cgroup is left in use");
            fs::remove_dir_all(&self.state).expect("no mount is left below the state directory");
        }
    }

    /// Process 1 of a PID namespace gets no signal that it has not asked for: waits until it says that it has.
    async fn await_log(node: &Node, id: &str, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !node.log(id).contains(text) {
            assert!(
                Instant::now() < deadline,
                "{text:?} is not in the log {:?}",
                node.log(id)
            );
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn exit_code_and_log_survive_in_files() {
        let Some(node) = Node::new("exit") else { return };
        let container = node
            .start(
                "a",
                &["/testserver", "fetch", "--count", "1", "http://127.0.0.1:1/"],
            )
            .await;
        let exit = container.ended().await;
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (1, None, false));
        let texts = node.log_texts("a");
        assert!(
            texts
                .iter()
                .any(|t| t.starts_with("stdout F summary: requests=1 failed=1")),
            "{texts:?}"
        );
        assert_eq!(container.exit().expect("readable"), Some(exit));
    }

    #[tokio::test]
    async fn a_container_stands_in_the_nodes_cgroup_v2_subtree() {
        let Some(node) = Node::new("cgroup") else { return };
        let container = node.start("a", &["/testserver", "sleep", "infinity"]).await;
        let pid = container.started.init.pid;
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
        let expected = format!("0::{}/pods/uid/a", node.cgroup.oci_path().display());
        assert!(membership.lines().any(|line| line == expected), "{membership}");
        await_log(&node, "a", "sleeping").await;
        let begin = Instant::now();
        assert!(container.signal(Signal::TERM));
        assert_eq!(container.ended().await.code, 0);
        eprintln!("ended {:?} after SIGTERM", begin.elapsed());
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    async fn exec(node: &Node, command: &[&str], limit: Duration) -> Result<(i32, String), ExecError> {
        let output = node.runtime.exec_output("a", &words(command), limit).await?;
        Ok((output.code, String::from_utf8_lossy(&output.output).into_owned()))
    }

    /// Waits for a number of processes in the cgroup of container `a`.
    fn await_processes(node: &Node, wanted: usize) {
        let file = node.cgroup.directory().join("pods/uid/a/cgroup.procs");
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let processes = fs::read_to_string(&file).expect("a cgroup");
            if processes.lines().count() == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "processes {processes:?}, not {wanted}");
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_container_joins_the_processes_of_another_and_ends_with_them() {
        let Some(node) = Node::new("joined") else { return };
        let first = node.start("first", &["/testserver", "sleep", "infinity"]).await;
        let mut spec = node.spec("a", &["/testserver", "sleep", "infinity"]);
        spec.shared_pids = Some(PathBuf::from(format!("/proc/{}/ns/pid", first.started.init.pid)));
        let request = ContainerRequest {
            shares_pids: true,
            ..node.request("a")
        };
        let joined = node.runtime.start(request, &oci_config(&spec)).await;
        let joined = joined.expect("the container starts");
        let namespace = |of: &Container| {
            let pid = of.started.init.pid;
            fs::read_link(format!("/proc/{pid}/ns/pid")).expect("it runs")
        };
        assert_eq!(namespace(&joined), namespace(&first));
        first.signal(Signal::KILL);
        assert_eq!(first.ended().await.code, 137);
        assert_eq!(joined.ended().await.code, 137);
    }

    #[tokio::test]
    async fn a_command_runs_in_the_surroundings_of_its_container() {
        let Some(node) = Node::new("exec") else { return };
        let mut spec = node.spec("a", &["/testserver", "sleep", "infinity"]);
        spec.cwd = "/tmp".to_owned();
        spec.security.uid = 1000;
        spec.security.gid = 2000;
        spec.security.groups = vec![3000];
        let started = node.runtime.start(node.request("a"), &oci_config(&spec)).await;
        let container = started.expect("the container starts");
        let long = Duration::from_secs(30);
        for (command, code, output) in [
            (&["echo", "hello", "a  b"][..], 0, "hello a  b\n"),
            (&["/testserver", "exit", "3"], 3, ""),
            (&["pwd"], 0, "/tmp\n"),
            (&["id"], 0, "uid=1000 gid=2000 groups=3000\n"),
            (&["hostname"], 0, "pod\n"),
            (&["tty"], 1, "not a tty\n"),
            (
                &["cat", "/none"],
                2,
                "testserver: /none: No such file or directory (os error 2)\n",
            ),
        ] {
            let seen = exec(&node, command, long).await.expect("it runs");
            assert_eq!(seen, (code, output.to_owned()), "{command:?}");
        }
        let (_, membership) = exec(&node, &["cat", "/proc/self/cgroup"], long)
            .await
            .expect("it runs");
        let expected = format!("0::{}/pods/uid/a", node.cgroup.oci_path().display());
        assert!(membership.lines().any(|line| line == expected), "{membership}");
        let missing = exec(&node, &["sh", "-c", "true"], long)
            .await
            .expect_err("no shell");
        let text = "OCI runtime exec failed: exec failed: unable to start container process: exec: \"sh\": \
                    executable file not found in $PATH: unknown";
        assert_eq!(missing.to_string(), text);
        // Of a large output the beginning is kept.
        let (code, large) = exec(&node, &["cat", "/testserver"], long).await.expect("it runs");
        assert_eq!((code, large.starts_with("\u{7f}ELF")), (0, true));
        assert!(node.runtime.exec("gone", &Exec::default()).await.is_err());
        await_processes(&node, 1);
        let left = fs::read_dir(node.runtime.container_dir("a").execs()).expect("a directory");
        assert_eq!(left.count(), 0, "nothing of a command stays");
        container.signal(Signal::KILL);
        container.ended().await;
    }

    #[tokio::test]
    async fn a_command_that_takes_too_long_is_killed() {
        let Some(node) = Node::new("exectime") else { return };
        node.start("a", &["/testserver", "sleep", "infinity"]).await;
        let limit = Duration::from_millis(300);
        let error = exec(&node, &["sleep", "600"], limit).await.expect_err("too long");
        assert_eq!(
            error.to_string(),
            "command [\"sleep\", \"600\"] timed out after 300ms"
        );
        await_processes(&node, 1);
    }

    #[tokio::test]
    async fn a_command_ends_with_its_container() {
        let Some(node) = Node::new("execend") else { return };
        let container = node.start("a", &["/testserver", "sleep", "infinity"]).await;
        let exec = Exec {
            command: words(&["cat"]),
            terminal: true,
            stdin: true,
        };
        let mut process = node.runtime.exec("a", &exec).await.expect("it runs");
        await_processes(&node, 2);
        container.signal(Signal::KILL);
        assert_eq!(process.ending.code().await.expect("its end is seen"), 137);
    }

    #[tokio::test]
    async fn what_is_attached_types_and_hears_and_holds_up_nobody() {
        let Some(node) = Node::new("attach") else { return };
        let mut request = node.request("a");
        request.stdin = Stdin::Once;
        let spec = node.spec("a", &["cat", "-", "/dev/zero"]);
        let started = node.runtime.start(request, &oci_config(&spec)).await;
        let container = started.expect("the container starts");
        let attach = async || {
            let path = node.runtime.container_dir("a").attach();
            kubelet::terminal::connect(&path).await.expect("the shim listens")
        };
        let (mut active, mut silent) = (attach().await, attach().await);
        active.write_all(&header(Kind::Stdin, 6)).await.expect("sent");
        active.write_all(b"hello\n").await.expect("sent");
        let heard = [&header(Kind::Stdout, 6)[..], b"hello\n"].concat();
        for client in [&mut active, &mut silent] {
            let mut buffer = vec![0; heard.len()];
            client.read_exact(&mut buffer).await.expect("heard");
            assert_eq!(buffer, heard);
        }
        assert_eq!(node.log_texts("a"), ["stdout F hello"]);
        // Its input ends with the first who leaves; then it writes without end.
        drop(active);
        await_log(&node, "a", " P ").await;
        // Who does not read is sent away: what was kept for it ends.
        let mut kept = Vec::new();
        let deadline = Duration::from_secs(30);
        let closed = async {
            let logs = node.state.join("log/a.log.1");
            while !logs.exists() {
                tokio::task::yield_now().await;
            }
            silent.read_to_end(&mut kept).await
        };
        let ended = tokio::time::timeout(deadline, closed)
            .await
            .expect("it is sent away");
        assert!(ended.is_ok_and(|length| length < 4 << 20), "{} bytes", kept.len());
        container.signal(Signal::KILL);
        container.ended().await;
    }

    #[tokio::test]
    async fn a_new_runtime_adopts_what_runs_and_what_ended() {
        let Some(node) = Node::new("adopt") else { return };
        let running = node.start("running", &["/testserver", "sleep", "infinity"]).await;
        let ended = node.start("ended", &["/testserver", "sleep", "0"]).await;
        ended.ended().await;
        let again = Runtime::open(Path::new("/nonexistent"), &node.state.join("containers")).expect("opens");
        let adopted = again.adopt().expect("readable");
        assert_eq!(adopted, [running, ended]);
        let exits: Vec<bool> = adopted
            .iter()
            .map(|c| c.exit().expect("readable").is_some())
            .collect();
        assert_eq!(exits, [false, true]);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_refused_with_its_name() {
        let Some(node) = Node::new("refused") else { return };
        let config = oci_config(&node.spec("a", &["/no-such-program"]));
        let error = node
            .runtime
            .start(node.request("a"), &config)
            .await
            .expect_err("no such program");
        assert!(error.to_string().contains("/no-such-program"), "{error}");
        assert!(!node.runtime.container_dir("a").path().exists());
    }

    #[tokio::test]
    async fn a_killed_shim_takes_its_container_along() {
        let Some(node) = Node::new("shimkill") else { return };
        let container = node.start("a", &["/testserver", "sleep", "infinity"]).await;
        let shim: kubelet::process::ProcessIdentity =
            kubelet::disk::read_json(&node.runtime.container_dir("a").shim())
                .expect("readable")
                .expect("there");
        shim.signal(Signal::KILL);
        assert_eq!(container.ended().await.code, kubelet::runtime::UNKNOWN_EXIT_CODE);
        assert!(!container.started.init.is_alive());
    }

    #[tokio::test]
    async fn shared_memory_is_the_nodes_with_its_ipc_namespace() {
        let Some(node) = Node::new("ipc") else { return };
        let shared = PathBuf::from(format!("/dev/shm/cwt-shim-{}", std::process::id()));
        fs::write(&shared, b"of the node").expect("writable");
        let path = shared.to_str().expect("a path");
        let mut seen = Vec::new();
        for (id, host_ipc) in [("a", true), ("b", false)] {
            let mut spec = node.spec(id, &["/bin/cat", path]);
            spec.host_ipc = host_ipc;
            let started = node.runtime.start(node.request(id), &oci_config(&spec)).await;
            let exit = started.expect("starts").ended().await;
            seen.push((exit.code == 0, node.log(id).contains("of the node")));
        }
        fs::remove_file(&shared).expect("removable");
        assert_eq!(seen, [(true, true), (false, false)]);
    }

    #[tokio::test]
    async fn a_container_with_a_damaged_file_ends_and_the_others_are_adopted() {
        let Some(node) = Node::new("damaged") else { return };
        let kept = node.start("kept", &["/testserver", "sleep", "infinity"]).await;
        for (id, file) in [
            ("request", ContainerDir::request as fn(&ContainerDir) -> PathBuf),
            ("started", ContainerDir::started),
            ("shim", ContainerDir::shim),
        ] {
            let container = node.start(id, &["/testserver", "sleep", "infinity"]).await;
            fs::write(file(&node.runtime.container_dir(id)), b"{").expect("writable");
            let adopted = node.runtime.adopt().expect("the others are readable");
            assert_eq!(adopted.as_slice(), std::slice::from_ref(&kept), "{id}");
            assert!(!container.started.init.is_alive(), "{id}");
        }
        assert!(kept.started.init.is_alive());
    }

    /// A kubelet checked `dir`, then another container of the pod put a link in its place.
    #[tokio::test]
    async fn a_part_of_a_volume_is_mounted_as_the_shim_finds_it() {
        let Some(node) = Node::new("sub-path") else { return };
        let (volume, outside) = (node.state.join("volume"), node.state.join("outside"));
        for directory in [&volume.join("dir"), &outside] {
            fs::create_dir_all(directory).expect("a directory");
            fs::write(directory.join("key"), directory.display().to_string()).expect("written");
        }
        symlink(&outside, volume.join("swapped")).expect("a link");
        let inside = volume.join("dir").display().to_string();
        for (id, path, seen_at, expected) in [
            ("a", "dir", "/part/key", Ok(inside.as_str())),
            ("b", "dir/key", "/part", Ok(inside.as_str())),
            ("c", "swapped", "/part/key", Err("open subPath")),
        ] {
            let mut request = node.request(id);
            request.sub_paths.push(SubPath {
                volume: volume.clone(),
                path: PathBuf::from(path),
            });
            let mut spec = node.spec(id, &["/bin/cat", seen_at]);
            spec.mounts.push(BindMount {
                source: node.runtime.container_dir(id).sub_path(0),
                within: None,
                target: PathBuf::from("/part"),
                read_only: true,
                follows_node: false,
            });
            let started = node.runtime.start(request, &oci_config(&spec)).await;
            let seen = match started {
                Ok(container) => {
                    container.ended().await;
                    Ok(node.log(id))
                }
                Err(error) => Err(error.to_string()),
            };
            let is_as_expected = match (&seen, expected) {
                (Ok(log), Ok(text)) => log.contains(text),
                (Err(error), Err(text)) => error.contains(text),
                _ => false,
            };
            assert!(is_as_expected, "{path}: {seen:?}");
        }
    }

    #[tokio::test]
    async fn the_memory_limit_holds() {
        let Some(node) = Node::new("memory") else { return };
        let mut spec = node.spec("a", &["/testserver", "sleep", "infinity"]);
        spec.resources.memory_limit_bytes = Some(64 << 20);
        let container = node
            .runtime
            .start(node.request("a"), &oci_config(&spec))
            .await
            .expect("starts");
        let pid = container.started.init.pid;
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
        let below = membership
            .lines()
            .find_map(|line| line.split_once(":memory:").map(|(_, path)| path));
        let limit = match below {
            Some(path) => format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"),
            None => node
                .cgroup
                .directory()
                .join("pods/uid/a/memory.max")
                .display()
                .to_string(),
        };
        assert_eq!(
            fs::read_to_string(limit).expect("a limit").trim(),
            (64 << 20).to_string()
        );
    }
}
