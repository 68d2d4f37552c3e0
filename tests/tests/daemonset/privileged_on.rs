//! `causeway on`: nodes are asked by the agents' pods, from somewhere that has a kubeconfig and nothing else.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::cluster::{Cluster, everything, program};
use tests::directory::Directory;
use tests::process::{Place, Process};
use tests::{pcapng, wait};

use crate::installation::{LATER, build_image, install, on_a_cluster};

/// How the commands in the agents' pods are told from all others.
const THERE: &str = "--while-input-is-open";

/// An agent's pod does not see the node's processes, and so no cgroup of the sender.
pub const NOT_FROM_ITS_CGROUP: &str = "the probe is not sent from the sender's cgroup, where the socket hook would see it: rules \
                                   for packets translate it instead (no process of the sender stands there)";

/// What `causeway version` says, whatever the state of the machine.
const VERSION: &str = "causeway 0.1.0\n";

#[test]
fn nodes_are_asked_from_elsewhere() {
    on_a_cluster(
        "causeway on, by the API server of the bundled cluster",
        |cluster| {
            build_image(cluster)?;
            install(cluster, "vxlan")?;
            cluster.run(&["wait", "node", "--all", "--for=condition=Ready", "--timeout=30s"])?;
            let world = World::new(cluster)?;
            world.one_node_is_passed_on_as_it_is()?;
            world.a_bundle_comes_out_of_an_agents_pod()?;
            world.several_nodes_are_told_apart()?;
            world.who_is_named_tells_the_node()?;
            world.a_capture_of_both_ends_is_one_file_here()?;
            world.a_trace_is_one_story_of_all_nodes_on_the_way()?;
            world.what_goes_on_is_told_as_it_comes_and_ends_there_too()?;
            world.names_of_nothing_suggest_what_there_is()?;
            world.who_may_not_is_told_what_is_missing()?;
            world.a_node_without_an_agent_is_told()?;
            world.a_story_without_one_of_its_nodes_says_so()
        },
    );
}

/// A client on the first node, a server of no Service on the second.
pub struct World<'c> {
    pub cluster: &'c Cluster,
}

impl<'c> World<'c> {
    fn new(cluster: &'c Cluster) -> anyhow::Result<Self> {
        for (name, node) in [("client", "node-1"), ("server", "node-2")] {
            let container = json!({ "name": "c", "image": "causeway/testserver:v1", "args": ["serve", "--http", ":8080"] });
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
                "spec": { "nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container] },
            });
            cluster.apply(&pod.to_string())?;
        }
        cluster.run(&["wait", "pod", "--all", "--for=condition=Ready", "--timeout=60s"])?;
        Ok(Self { cluster })
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("causeway"));
        command
            .arg("on")
            .arg("--kubeconfig")
            .arg(self.cluster.kubeconfig());
        command.args(words);
        command
    }

    pub fn run(&self, words: &[&str]) -> anyhow::Result<Output> {
        self.command(words).output().context("starting causeway on")
    }

    /// Says exactly this, on standard output and standard error.
    fn says(&self, words: &[&str], code: i32, stdout: &str, stderr: &str) -> anyhow::Result<()> {
        let output = self.run(words)?;
        let said = (text(&output.stdout), text(&output.stderr), output.status.code());
        ensure!(
            said == (stdout.to_owned(), stderr.to_owned(), Some(code)),
            "{words:?}: {said:#?}"
        );
        Ok(())
    }

    /// What kubectl prints of the same command in the pod.
    fn one_node_is_passed_on_as_it_is(&self) -> anyhow::Result<()> {
        let pod = self.agent_of("node-2")?;
        let command = ["causeway", "node", "config", "print"];
        let exec = ["exec", "-n", "causeway", &pod, "-c", "agent", "--"];
        let config = self.cluster.run(&[&exec[..], &command].concat())?;
        ensure!(config.contains("nodeName: node-2"), "{config}");
        self.says(&[&["node-2", "--"], &command[1..]].concat(), 0, &config, "")?;
        self.says(&["node/node-1", "--", "version"], 0, VERSION, "")?;
        let output = self.run(&["node-1", "--", "doctor", "-o", "json"])?;
        let report: Value = serde_json::from_slice(&output.stdout).with_context(|| everything(&output))?;
        ensure!(report["node"] == "node-1", "{report:#}");
        let refused = "error: node cleanup is not for other nodes: it changes the node. What is: doctor, explain, trace, \
                       drops, flows, capture, node config print and check, and version\n";
        self.says(&["node-1", "--", "node", "cleanup", "--force"], 2, "", refused)
    }

    /// Not privileged as it is there, the command has all parts but the log, which is the runtime's; asked anywhere, the
    /// bundle says what the node says.
    fn a_bundle_comes_out_of_an_agents_pod(&self) -> anyhow::Result<()> {
        let directory = Directory::new("bundle");
        let pod = self.agent_of("node-1")?;
        let exec = ["exec", "-n", "causeway", &pod, "-c", "agent", "--", "causeway"];
        let make = self
            .cluster
            .kubectl("kubectl", &[&exec[..], &["bundle", "-o", "-"]].concat())
            .output()?;
        let told = text(&make.stderr);
        let missing: Vec<_> = told
            .lines()
            .filter(|line| line.starts_with("missing: "))
            .collect();
        ensure!(
            missing.iter().all(|line| line.starts_with("missing: log.txt: ")) && !make.stdout.is_empty(),
            "{told}"
        );
        let file = directory.path().join("node-1.tar.gz");
        fs::write(&file, &make.stdout)?;
        let question = ["explain", "pod/client", "svc/kubernetes:443"];
        let live = self
            .cluster
            .kubectl("kubectl", &[&exec[..], &question].concat())
            .output()?;
        let mut replay = Command::new(program("causeway"));
        replay.args(["bundle", "replay"]).arg(&file).args(question);
        let replayed = replay.output()?;
        ensure!(
            replayed.status.success() && text(&replayed.stdout) == text(&live.stdout),
            "{}{}",
            everything(&replayed),
            everything(&live)
        );
        Ok(())
    }

    fn several_nodes_are_told_apart(&self) -> anyhow::Result<()> {
        let headers = "==> node-1 <==\n==> node-2 <==\n";
        let both = "causeway 0.1.0\ncauseway 0.1.0\n";
        self.says(&["--all", "--", "version"], 0, both, headers)?;
        let prefixed = "node-2 | causeway 0.1.0\n";
        self.says(&["node-2", "--prefix", "--", "version"], 0, prefixed, "")?;
        let output = self.run(&["node-2,node-1", "--", "version", "-o", "json"])?;
        let document: Value = serde_json::from_slice(&output.stdout).with_context(|| everything(&output))?;
        let node = |name: &str| json!({ "node": name, "exitCode": 0, "output": { "name": "causeway", "version": "0.1.0" } });
        ensure!(
            document == json!({ "nodes": [node("node-2"), node("node-1")] }),
            "{document:#}"
        );
        Ok(())
    }

    /// The server is no endpoint: its own agent alone knows it by name.
    fn who_is_named_tells_the_node(&self) -> anyhow::Result<()> {
        let output = self.run(&["--", "trace", "pod/client", "pod/server:8080", "--inject"])?;
        ensure!(
            output.status.code() == Some(0)
                && text(&output.stdout).contains("verdict: ANSWERED")
                // Places have their names: nothing that it needs is missing there.
                && !text(&output.stdout).contains("CAP_")
                && text(&output.stderr) == format!("on node-1, node-2\nnode-1: {NOT_FROM_ITS_CGROUP}\n"),
            "{}",
            everything(&output)
        );
        let output = self.run(&["--", "explain", "pod/server", "pod/client:8080", "-o", "json"])?;
        let explained: Value = serde_json::from_slice(&output.stdout).with_context(|| everything(&output))?;
        ensure!(
            explained["conclusion"] == "works" && text(&output.stderr) == "on node-2\n",
            "{}",
            everything(&output)
        );
        let output = self.run(&["--of", "pod/server", "--", "node", "config", "print"])?;
        ensure!(
            text(&output.stdout).contains("nodeName: node-2") && output.stderr.is_empty(),
            "{}",
            everything(&output)
        );
        let which = "error: which nodes? Name them (causeway on NODE[,NODE…] -- …), say --all, or --of pod/NAME for the \
                     node of a pod\n";
        self.says(&["--", "doctor"], 2, "", which)
    }

    fn a_capture_of_both_ends_is_one_file_here(&self) -> anyhow::Result<()> {
        let directory = Directory::new("on");
        let file = directory.path().join("both.pcapng");
        let path = file.to_str().context("a path")?;
        let words = [
            "--",
            "capture",
            "pod/client",
            "--to",
            "pod/server:8080",
            "-w",
            path,
        ];
        let mut capturing = Process::spawn(&Place::default(), &mut self.command(&words))?;
        capturing.await_line("on node-1, node-2", LATER);
        for node in ["node-1", "node-2"] {
            capturing.await_line(&format!("{node}: capturing at "), LATER);
        }
        let address = self
            .cluster
            .run(&["get", "pod", "server", "-o", "jsonpath={.status.podIP}"])?;
        let probe = format!("tcp:{address}:8080");
        let exec = [
            "exec",
            "client",
            "--",
            "/testserver",
            "probe",
            "--timeout-ms",
            "5000",
            &probe,
        ];
        let answer = self.cluster.run(&exec)?;
        ensure!(answer.contains(" ok "), "{answer}");
        // The statistics of both come at their ends.
        interrupt(&capturing)?;
        let status = capturing.await_end(LATER);
        ensure!(status.code() == Some(0), "{status}: {}", capturing.output());
        let contents = pcapng::read(&fs::read(&file)?);
        let names = contents.names();
        let seen = |device: &str| {
            let interface = names.iter().position(|name| name == device);
            let interface = interface.with_context(|| format!("no {device} in {names:?}"))?;
            let packets = contents.packets.iter();
            anyhow::Ok(
                packets
                    .filter(|packet| packet.interface as usize == interface)
                    .count(),
            )
        };
        let ends = [
            seen("node-1/default/client/eth0")?,
            seen("node-2/default/server/eth0")?,
        ];
        ensure!(ends[0] > 3 && ends[0] == ends[1], "{ends:?} packets: {names:?}");
        ensure!(
            contents.packets.is_sorted_by_key(|packet| packet.at),
            "packets are not in the order of their times"
        );
        ensure!(
            contents.statistics.len() == names.len(),
            "{:?}",
            contents.statistics
        );
        Ok(())
    }

    fn what_goes_on_is_told_as_it_comes_and_ends_there_too(&self) -> anyhow::Result<()> {
        let nothing_is_left = || {
            wait::until_value(
                "commands in the agents' pods",
                LATER,
                commands_there,
                Vec::is_empty,
            );
        };
        // The kubelets' probes are traffic; what others on this machine lose is no failure of these.
        let words = [
            "--all",
            "--",
            "flows",
            "--follow",
            "--verdict",
            "FORWARDED",
            "-o",
            "ndjson",
        ];
        let mut following = Process::spawn(&Place::default(), &mut self.command(&words))?.quiet();
        following.await_line("{\"node\":\"node-1\",", LATER);
        following.await_line("{\"node\":\"node-2\",", LATER);
        ensure!(commands_there().len() == 2, "{:?}", commands_there());
        interrupt(&following)?;
        let status = following.await_end(LATER);
        ensure!(status.code() == Some(0), "{status}: {}", following.output());
        nothing_is_left();

        // What it saw until then is told.
        let words = ["node-1", "--", "trace", "any", "10.244.9.9:1", "--timeout", "60s"];
        let mut tracing = Process::spawn(&Place::default(), &mut self.command(&words))?;
        tracing.await_line("following packets", LATER);
        interrupt(&tracing)?;
        let status = tracing.await_end(Duration::from_secs(20));
        ensure!(
            status.code() == Some(2) && tracing.output().contains("verdict: NOTHING SEEN"),
            "{status}: {}",
            tracing.output()
        );
        nothing_is_left();

        // A connection that breaks is no end of the command, which ends by it.
        let words = ["node-2", "--", "flows", "--follow"];
        let mut following = Process::spawn(&Place::default(), &mut self.command(&words))?.quiet();
        following.await_line("FORWARDED", LATER);
        self.cluster.kill_and_await_successor("node-2-kubelet", LATER)?;
        let status = following.await_end(LATER);
        let broke = "error: node-2: run causeway in pod causeway-node-";
        let why = ": the connection broke before its end was told";
        let told = following.output();
        let is_told = told
            .lines()
            .any(|line| line.starts_with(broke) && line.ends_with(why));
        ensure!(status.code() == Some(2) && is_told, "{status}: {told}");
        nothing_is_left();

        // Who reads no more, as head does, ends it too.
        let words = ["node-1", "--", "flows", "--follow"];
        let mut reading = self.command(&words).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let mut stdout = BufReader::new(reading.stdout.take().context("piped")?);
        stdout.read_line(&mut line)?;
        drop(stdout);
        wait::until_value(
            "its end",
            LATER,
            || reading.try_wait().ok().flatten(),
            Option::is_some,
        );
        nothing_is_left();

        // Who is killed tells nobody.
        let words = ["node-2", "--", "capture", "pod/server"];
        let mut capturing = Process::spawn(&Place::default(), &mut self.command(&words))?;
        capturing.await_line("capturing at ", LATER);
        ensure!(commands_there().len() == 1, "{:?}", commands_there());
        capturing.kill();
        nothing_is_left();
        self.cluster
            .run(&["wait", "node", "--all", "--for=condition=Ready", "--timeout=60s"])?;
        Ok(())
    }

    fn names_of_nothing_suggest_what_there_is(&self) -> anyhow::Result<()> {
        let unknown =
            "error: no node nod-1 (did you mean node/node-1 or node/node-2?); there are node-1, node-2\n";
        self.says(&["node-2,nod-1", "--", "doctor"], 2, "", unknown)?;
        let unknown = "error: there is no pod/clint (did you mean pod/client?)\n";
        self.says(&["--of", "pod/clint", "--", "doctor"], 2, "", unknown)?;
        self.says(&["--", "explain", "pod/clint", "pod/server:80"], 2, "", unknown)?;
        let nobody = "error: namespace default has no agents (pods with the label app.kubernetes.io/name=causeway-node): \
                      --namespace names another; agents that are no pods, as those of `causeway up`, are asked on their own \
                      machine\n";
        self.says(
            &["--all", "--namespace", "default", "--", "doctor"],
            2,
            "",
            nobody,
        )
    }

    fn who_may_not_is_told_what_is_missing(&self) -> anyhow::Result<()> {
        self.cluster.run(&["create", "serviceaccount", "viewer"])?;
        let token = self.cluster.run(&["create", "token", "viewer"])?;
        let directory = Directory::new("viewer");
        let kubeconfig = directory.path().join("kubeconfig");
        fs::copy(self.cluster.kubeconfig(), &kubeconfig)?;
        let config = |words: &[&str]| {
            let mut command = Command::new("kubectl");
            command
                .arg("config")
                .arg("--kubeconfig")
                .arg(&kubeconfig)
                .args(words);
            let output = command.output().context("starting kubectl")?;
            ensure!(output.status.success(), "{}", everything(&output));
            anyhow::Ok(text(&output.stdout))
        };
        let server = config(&["view", "-o", "jsonpath={.clusters[0].name}"])?;
        let token = format!("--token={}", token.trim());
        config(&["set-credentials", "viewer", &token])?;
        config(&[
            "set-context",
            "viewer",
            "--user=viewer",
            &format!("--cluster={server}"),
        ])?;
        let viewer = ["--kubeconfig", path(&kubeconfig)?, "--context", "viewer"];
        let says = |words: &[&str], stdout: &str, stderr: &str| {
            let mut command = Command::new(program("causeway"));
            let output = command.arg("on").args(viewer).args(words).output()?;
            let said = (text(&output.stdout), text(&output.stderr));
            ensure!(
                said == (stdout.to_owned(), stderr.to_owned()),
                "{words:?}: {said:#?}"
            );
            Ok(output.status.code())
        };
        let who = "User \"system:serviceaccount:default:viewer\" cannot";
        let no_list = format!(
            "error: list the agents: the right is missing to list pods in namespace causeway (pods is forbidden: {who} list \
             resource \"pods\" in API group \"\" in the namespace \"causeway\")\n"
        );
        ensure!(
            says(&["node-1", "--", "doctor"], "", &no_list)? == Some(2),
            "exit code"
        );
        self.grant("looks", "pods", "list")?;
        let pod = self.agent_of("node-1")?;
        let no_exec = format!(
            "error: node-1: the right is missing to create and get pods/exec in namespace causeway (pods \"{pod}\" is \
             forbidden: {who} get resource \"pods/exec\" in API group \"\" in the namespace \"causeway\")\n"
        );
        ensure!(
            says(&["node-1", "--", "doctor"], "", &no_exec)? == Some(2),
            "exit code"
        );
        // With these two rights nothing else is needed.
        self.grant("asks", "pods/exec", "create,get")?;
        ensure!(
            says(&["node-1", "--", "version"], VERSION, "")? == Some(0),
            "exit code"
        );
        let no_nodes = format!(
            "warning: nodes without an agent are not seen: list the nodes: the right is missing to list nodes (nodes is \
             forbidden: {who} list resource \"nodes\" in API group \"\" at the cluster scope)\n==> node-1 <==\n==> node-2 \
             <==\n"
        );
        let both = format!("{VERSION}{VERSION}");
        ensure!(
            says(&["--all", "--", "version"], &both, &no_nodes)? == Some(0),
            "exit code"
        );
        Ok(())
    }

    fn grant(&self, name: &str, resource: &str, verbs: &str) -> anyhow::Result<()> {
        let (resource, verbs) = (format!("--resource={resource}"), format!("--verb={verbs}"));
        self.cluster
            .run(&["create", "role", name, "-n", "causeway", &resource, &verbs])?;
        let role = format!("--role={name}");
        let account = "--serviceaccount=default:viewer";
        self.cluster
            .run(&["create", "rolebinding", name, "-n", "causeway", &role, account])?;
        Ok(())
    }

    fn a_node_without_an_agent_is_told(&self) -> anyhow::Result<()> {
        let only = json!({ "spec": { "template": { "spec": { "nodeSelector": { "kubernetes.io/hostname": "node-1" } } } } });
        let patch = [
            "patch",
            "daemonset",
            "causeway-node",
            "-n",
            "causeway",
            "-p",
            &only.to_string(),
        ];
        self.cluster.run(&patch)?;
        // The other node's agent is replaced by it, too.
        let set = [
            "rollout",
            "status",
            "daemonset/causeway-node",
            "-n",
            "causeway",
            "--timeout=60s",
        ];
        self.cluster.run(&set)?;
        let pods = [
            "get",
            "pods",
            "-n",
            "causeway",
            "-l",
            "app.kubernetes.io/name=causeway-node",
            "-o",
        ];
        let nodes = "jsonpath={.items[*].spec.nodeName}";
        self.cluster
            .await_output(&[&pods[..], &[nodes]].concat(), "node-1", LATER);
        self.says(
            &["--all", "--", "version"],
            2,
            VERSION,
            "==> node-1 <==\n==> node-2 <==\nerror: node-2: no agent is on it\n",
        )?;
        self.says(
            &["node-2", "--", "doctor"],
            2,
            "",
            "error: node-2: no agent is on it\n",
        )?;
        let output = self.run(&["--all", "--", "version", "-o", "json"])?;
        let document: Value = serde_json::from_slice(&output.stdout).with_context(|| everything(&output))?;
        let missing = json!({ "node": "node-2", "error": "no agent is on it" });
        ensure!(document["nodes"][1] == missing, "{document:#}");
        Ok(())
    }

    fn agent_of(&self, node: &str) -> anyhow::Result<String> {
        let name = format!("jsonpath={{.items[?(@.spec.nodeName==\"{node}\")].metadata.name}}");
        let get = [
            "get",
            "pods",
            "-n",
            "causeway",
            "-l",
            "app.kubernetes.io/name=causeway-node",
            "-o",
            &name,
        ];
        self.cluster.run(&get)
    }
}

/// The command lines that run in agents' pods because of somebody elsewhere.
fn commands_there() -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| text(&line).replace('\0', " "));
    lines
        .filter(|line| line.starts_with("causeway ") && line.contains(THERE))
        .collect()
}

pub fn interrupt(process: &Process) -> anyhow::Result<()> {
    let pid = Pid::from_raw(i32::try_from(process.pid())?);
    Ok(kill(pid, Signal::SIGINT)?)
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
