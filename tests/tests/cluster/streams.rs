//! What goes through the kubelet: commands in containers, files, ports, and HTTP by the API server. With every kubectl,
//! since each version of it speaks another protocol (1.20 to 1.28 SPDY, later ones WebSocket), and with `kube`.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::termios::{Winsize, tcsetwinsize};
use tests::cluster::{Cluster, busybox, everything};
use tests::{http, kubectl};

use super::SOON;

/// One container that serves, and one that repeats what it is told.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: streams, labels: {app: streams}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: server
    image: causeway/testserver:v1
    args: [serve]
    ports: [{containerPort: 8080, name: web}]
    env: [{name: COLOUR, value: blue}]
    workingDir: /tmp
    securityContext: {runAsUser: 1000, runAsGroup: 2000}
  - {name: echo, image: 'causeway/testserver:v1', command: [cat], stdin: true}
---
apiVersion: v1
kind: Service
metadata: {name: streams}
spec: {selector: {app: streams}, ports: [{name: web, port: 80, targetPort: web}]}
";

/// Makes the pod that the other rows use.
pub fn start(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(POD)?;
    cluster.run(&["wait", "--for=condition=Ready", "pod/streams", "--timeout=60s"])?;
    Ok(())
}

/// One kubectl on one cluster.
struct Kubectl<'a> {
    cluster: &'a Cluster,
    kubectl: &'static kubectl::Kubectl,
}

impl Kubectl<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        self.kubectl.command(self.cluster, arguments)
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> anyhow::Result<Output> {
        self.kubectl.run(self.cluster, arguments, input)
    }

    fn check(&self, arguments: &[&str], input: &[u8], code: i32, stdout: &[u8]) -> anyhow::Result<String> {
        let output = self.run(arguments, input)?;
        let said = everything(&output);
        let shown = said.get(..500).unwrap_or(&said);
        let what = format!("{} {}", self.kubectl, arguments.join(" "));
        ensure!(output.status.code() == Some(code), "{what}: {shown}");
        ensure!(
            output.stdout == stdout,
            "{what}: {} bytes: {shown}",
            output.stdout.len()
        );
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Display for Kubectl<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        self.kubectl.fmt(formatter)
    }
}

fn each_kubectl(
    cluster: &Cluster,
    mut check: impl FnMut(&Kubectl) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for kubectl in kubectl::all() {
        let begin = Instant::now();
        check(&Kubectl { cluster, kubectl })?;
        println!("{kubectl}: {:.1?}", begin.elapsed());
    }
    Ok(())
}

/// Bytes in which nothing repeats, so that one that is lost or doubled shows.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// `kubectl exec`: output, input, exit codes, and the container's own surroundings.
pub fn exec(cluster: &Cluster) -> anyhow::Result<()> {
    let large = noise(3 << 20);
    each_kubectl(cluster, |kubectl| {
        let exec = |more: &[&'static str]| [&["exec", "streams", "-c", "server"], more].concat();
        kubectl.check(&exec(&["--", "echo", "hello", "a  b"]), b"", 0, b"hello a  b\n")?;
        kubectl.check(&exec(&["--", "pwd"]), b"", 0, b"/tmp\n")?;
        kubectl.check(&exec(&["--", "hostname"]), b"", 0, b"streams\n")?;
        kubectl.check(&exec(&["--", "id"]), b"", 0, b"uid=1000 gid=2000 groups=\n")?;
        let env = kubectl.run(&exec(&["--", "env"]), b"")?;
        ensure!(
            String::from_utf8_lossy(&env.stdout).contains("COLOUR=blue\n"),
            "{}",
            everything(&env)
        );
        // It is in the container's cgroup, or its connects would pass the service proxy by.
        let cgroups = kubectl.run(&exec(&["--", "cat", "/proc/self/cgroup"]), b"")?;
        let cgroups = String::from_utf8_lossy(&cgroups.stdout).into_owned();
        ensure!(
            cgroups
                .lines()
                .any(|line| line.starts_with("0::/") && line.ends_with("/server")),
            "{cgroups}"
        );
        kubectl.check(&exec(&["-i", "--", "cat"]), &large, 0, &large)?;
        kubectl.check(&exec(&["-i", "--", "cat"]), b"", 0, b"")?;
        // What is not asked for is not sent, and the command does not wait for it.
        kubectl.check(&exec(&["--", "cat"]), &large, 0, b"")?;
        let told = kubectl.check(&exec(&["--", "/testserver", "exit", "3"]), b"", 3, b"")?;
        ensure!(told.contains("command terminated with exit code 3"), "{told}");
        let told = kubectl.check(&exec(&["--", "cat", "/none"]), b"", 2, b"")?;
        ensure!(told.contains("testserver: /none: No such file"), "{told}");
        let told = kubectl.check(&exec(&["--", "sh", "-c", "exit 3"]), b"", 1, b"")?;
        ensure!(
            told.contains("exec: \"sh\": executable file not found in $PATH"),
            "{told}"
        );
        let told = kubectl.check(&["exec", "streams", "-c", "none", "--", "true"], b"", 1, b"")?;
        ensure!(
            told.contains("container none is not valid for pod streams"),
            "{told}"
        );
        let told = kubectl.check(&["exec", "absent", "--", "true"], b"", 1, b"")?;
        ensure!(told.contains("pods \"absent\" not found"), "{told}");
        Ok(())
    })
}

/// `kubectl cp` both ways; with busybox in the container a shell runs there, on pipes and on a terminal.
pub fn copies_and_shells(cluster: &Cluster) -> anyhow::Result<()> {
    let busybox = busybox()?;
    let program = fs::read(&busybox)?;
    let busybox = busybox.to_str().context("a path")?;
    let back = std::env::temp_dir().join(format!("cwt-busybox-{}", std::process::id()));
    let back_text = back.display().to_string();
    each_kubectl(cluster, |kubectl| {
        kubectl.check(
            &["cp", busybox, "streams:/tmp/busybox", "-c", "server"],
            b"",
            0,
            b"",
        )?;
        let copied = kubectl.run(&["cp", "streams:/tmp/busybox", &back_text, "-c", "server"], b"")?;
        ensure!(copied.status.success(), "{}: {}", kubectl, everything(&copied));
        ensure!(
            fs::read(&back)? == program,
            "{}: {back_text} is another file",
            kubectl
        );
        fs::remove_file(&back)?;
        let shell = [
            "exec",
            "-i",
            "streams",
            "-c",
            "server",
            "--",
            "/tmp/busybox",
            "sh",
        ];
        kubectl.check(&shell, b"echo $COLOUR; echo bad >&2; exit 42\n", 42, b"blue\n")?;
        // What a command leaves behind does not hold the client.
        let background = "sleep 600 & echo done";
        let left = [
            "exec",
            "streams",
            "-c",
            "server",
            "--",
            "/tmp/busybox",
            "sh",
            "-c",
            background,
        ];
        kubectl.check(&left, b"", 0, b"done\n")?;
        on_a_terminal(kubectl)
    })
}

/// `kubectl exec -ti`: a terminal of the client's size, which follows it, and the exit code.
fn on_a_terminal(kubectl: &Kubectl) -> anyhow::Result<()> {
    let size = |rows, columns| Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = openpty(None, None)?;
    tcsetwinsize(&terminal.master, size(24, 100))?;
    let end = || -> anyhow::Result<OwnedFd> { Ok(terminal.slave.as_fd().try_clone_to_owned()?) };
    let shell = [
        "exec",
        "-ti",
        "streams",
        "-c",
        "server",
        "--",
        "/tmp/busybox",
        "sh",
    ];
    let mut client = kubectl
        .command(&shell)
        .stdin(end()?)
        .stdout(end()?)
        .stderr(end()?)
        .spawn()?;
    drop(terminal.slave);
    let mut typing = fs::File::from(terminal.master.try_clone()?);
    let screen = Screen::of(terminal.master.try_clone()?);
    let mut ask_until = |command: &str, wanted: &str| -> anyhow::Result<()> {
        let deadline = Instant::now() + SOON;
        while !screen.shows(wanted) {
            ensure!(
                Instant::now() < deadline,
                "{}: no {wanted:?} in {:?}",
                kubectl,
                screen.text()
            );
            typing.write_all(command.as_bytes())?;
        }
        Ok(())
    };
    ask_until("/tmp/busybox stty size\n", "24 100")?;
    ask_until("/tmp/busybox tty\n", "/dev/pts/")?;
    ask_until("echo $TERM\n", "xterm")?;
    tcsetwinsize(&terminal.master, size(50, 132))?;
    kill(Pid::from_raw(i32::try_from(client.id())?), Signal::SIGWINCH)?;
    ask_until("/tmp/busybox stty size\n", "50 132")?;
    typing.write_all(b"exit 5\n")?;
    let code = client.wait()?.code();
    ensure!(code == Some(5), "{kubectl}: exit code {code:?}");
    Ok(())
}

/// What a terminal shows, read by a thread of its own.
struct Screen {
    pieces: mpsc::Receiver<Vec<u8>>,
    text: std::cell::RefCell<String>,
}

impl Screen {
    fn of(master: OwnedFd) -> Self {
        let (sender, pieces) = mpsc::channel();
        let mut master = fs::File::from(master);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = master.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        let text = std::cell::RefCell::default();
        Self { pieces, text }
    }

    /// Waits a moment for more.
    fn shows(&self, wanted: &str) -> bool {
        while let Ok(piece) = self.pieces.recv_timeout(Duration::from_millis(200)) {
            self.text.borrow_mut().push_str(&String::from_utf8_lossy(&piece));
            if self.text().contains(wanted) {
                return true;
            }
        }
        self.text().contains(wanted)
    }

    fn text(&self) -> String {
        self.text.borrow().clone()
    }
}

/// `kubectl attach -i` to a container that repeats its input.
pub fn attach(cluster: &Cluster) -> anyhow::Result<()> {
    each_kubectl(cluster, |kubectl| {
        let mut client = kubectl
            .command(&["attach", "-i", "streams", "-c", "echo"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = client.stdin.take().context("no input")?;
        let mut lines = BufReader::new(client.stdout.take().context("no output")?).lines();
        for line in ["first", "second"] {
            writeln!(stdin, "{line} by {kubectl}")?;
            let heard = lines
                .by_ref()
                .map_while(Result::ok)
                .find(|heard| heard.starts_with(line));
            ensure!(heard == Some(format!("{line} by {kubectl}")), "{heard:?}");
        }
        end(client)
    })?;
    let log = cluster.run(&["logs", "streams", "-c", "echo"])?;
    ensure!(log.matches("second by ").count() == kubectl::all().len(), "{log}");
    Ok(())
}

fn end(mut client: Child) -> anyhow::Result<()> {
    client.kill()?;
    client.wait()?;
    Ok(())
}

/// A client that says on which port it listens, for as long as this value lives.
struct Listening {
    client: Child,
    port: u16,
    // A client that cannot tell what it does ends.
    _output: BufReader<ChildStdout>,
}

impl Listening {
    fn start(kubectl: &Kubectl, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut client = kubectl.command(arguments).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let mut output = BufReader::new(client.stdout.take().context("no output")?);
        output.read_line(&mut line)?;
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| {
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        });
        match port {
            Some(port) => Ok(Self {
                client,
                port,
                _output: output,
            }),
            None => {
                end(client)?;
                anyhow::bail!("{kubectl} {}: {line:?}", arguments.join(" "))
            }
        }
    }

    fn get(&self, path: &str) -> anyhow::Result<String> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        Ok(http::get(server, path)?)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// `kubectl port-forward` to a pod and to a Service, many connections at a time.
pub fn port_forward(cluster: &Cluster) -> anyhow::Result<()> {
    each_kubectl(cluster, |kubectl| {
        for (target, port) in [("pod/streams", ":8080"), ("service/streams", ":80")] {
            let forward = Listening::start(kubectl, &["port-forward", "--address=127.0.0.1", target, port])?;
            let answers = std::thread::scope(|scope| {
                let requests: Vec<_> = (0..20).map(|_| scope.spawn(|| forward.get("/"))).collect();
                requests
                    .into_iter()
                    .map(|request| request.join().expect("no panic"))
                    .collect::<Vec<_>>()
            });
            for answer in answers {
                let answer = answer?;
                ensure!(
                    answer.contains("hostname: streams"),
                    "{} {target}: {answer:?}",
                    kubectl
                );
            }
        }
        Ok(())
    })
}

/// `pods/proxy`, `services/proxy` and `nodes/proxy`, and `kubectl proxy` in front of them.
pub fn proxy(cluster: &Cluster) -> anyhow::Result<()> {
    each_kubectl(cluster, |kubectl| {
        let raw = |path: &str| -> anyhow::Result<String> {
            let output = kubectl.run(&["get", "--raw", path], b"")?;
            ensure!(
                output.status.success(),
                "{} {path}: {}",
                kubectl,
                everything(&output)
            );
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        for path in [
            "/api/v1/namespaces/default/pods/streams:8080/proxy/",
            "/api/v1/namespaces/default/pods/streams/proxy/",
            "/api/v1/namespaces/default/services/streams/proxy/",
            "/api/v1/namespaces/default/services/streams:80/proxy/",
            "/api/v1/namespaces/default/services/http:streams:web/proxy/",
        ] {
            let answer = raw(path)?;
            ensure!(answer.contains("hostname: streams"), "{path}: {answer}");
        }
        ensure!(
            raw("/api/v1/nodes/node-1/proxy/healthz")? == "ok",
            "healthz of a kubelet"
        );
        let refused = kubectl.run(
            &["get", "--raw", "/api/v1/namespaces/default/pods/streams:9/proxy/"],
            b"",
        )?;
        let refused = everything(&refused);
        ensure!(
            refused.contains("error trying to reach service") && refused.contains("refused"),
            "{refused}"
        );
        let proxy = Listening::start(kubectl, &["proxy", "--port=0"])?;
        let version = proxy.get("/version")?;
        ensure!(version.contains("gitVersion"), "{version}");
        let answer = proxy.get("/api/v1/namespaces/default/services/streams/proxy/?a=b")?;
        ensure!(answer.contains("hostname: streams"), "{answer}");
        let moved = proxy.get("/api/v1/namespaces/default/services/streams/proxy")?;
        let place = "/api/v1/namespaces/default/services/streams/proxy/";
        ensure!(
            moved.starts_with("HTTP/1.0 301") && moved.contains(place),
            "{moved}"
        );
        Ok(())
    })
}

/// When a client is killed its command loses its streams, and nothing of it stays with the kubelet.
pub fn gone_clients(cluster: &Cluster) -> anyhow::Result<()> {
    let id = cluster.run(&["get", "pod", "streams", "-o", "jsonpath={.metadata.uid}"])?;
    let cats = || -> usize {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let is_cat = |process: &fs::DirEntry| {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let cgroups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
            command.starts_with(b"cat\0-\0") && cgroups.contains(&id)
        };
        processes.filter(is_cat).count()
    };
    each_kubectl(cluster, |kubectl| {
        let mut client = kubectl
            .command(&["exec", "-i", "streams", "-c", "server", "--", "cat", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let _stdin = client.stdin.take();
        tests::wait::until_value("the command runs", SOON, cats, |count| *count == 1);
        end(client)?;
        tests::wait::until_value("the command's end", SOON, cats, |count| *count == 0);
        Ok(())
    })
}
