//! The program `causeway-cni`, run as a container runtime runs it, against an agent's socket. Needs root.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cni_plugin::protocol::{self, Failure, Request, Response};
use cni_plugin::tombstone;
use cni_plugin::wire::Sides;
use ipnetwork::IpNetwork;
use model::{Mtu, ObjectName};
use overlay::pods::{Attachment, AttachmentKey, Block, Growth, PodNetwork, Pool};
use serde_json::{Value, json};
use tests::process::run_in;
use tests::topology::Host;

/// The reference plugins, as Debian installs them (`containernetworking-plugins`).
const REFERENCE: &str = "/usr/lib/cni";

/// What a run came to.
struct Ran {
    code: Option<i32>,
    output: Value,
}

/// A node with an agent's socket, its pods' addresses and nothing else.
struct Node {
    host: Host,
    directory: PathBuf,
    socket: PathBuf,
    pods: PodNetwork,
}

/// The agent's socket served; dropped, the agent is gone.
struct Agent {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = std::os::unix::net::UnixStream::connect(&self.socket);
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Node {
    fn new(label: &str) -> Option<Self> {
        if !tests::privileged(label) {
            return None;
        }
        let host = Host::new("node").expect("make a namespace");
        let directory = std::env::temp_dir().join(host.name());
        std::fs::create_dir_all(&directory).expect("make a directory");
        let pods = PodNetwork::open(&directory).expect("open the log");
        let subnet: IpNetwork = "10.244.1.0/24".parse().expect("subnet");
        pods.serve([subnet].into_iter().collect(), Mtu(1450));
        Some(Self {
            host,
            socket: directory.join("cni.sock"),
            directory,
            pods,
        })
    }

    fn agent(&self) -> Agent {
        let listener = UnixListener::bind(&self.socket).expect("listen");
        let stop = Arc::new(AtomicBool::new(false));
        let (pods, stopped, namespace) = (
            self.pods.clone(),
            Arc::clone(&stop),
            self.host.namespace().clone(),
        );
        let thread = std::thread::spawn(move || {
            namespace.enter().expect("enter the node");
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let mut stream = stream.expect("accept");
                let pods = pods.clone();
                std::thread::spawn(move || {
                    let Ok(request) = protocol::read::<Request>(&mut stream) else {
                        return;
                    };
                    let frame = protocol::encode(&decide(&pods, request)).expect("encode");
                    let _ = stream.write_all(&frame);
                });
            }
        });
        Agent {
            socket: self.socket.clone(),
            stop,
            thread: Some(thread),
        }
    }

    fn run(&self, command: &str, id: &str, netns: &str) -> Ran {
        self.run_with(
            command,
            id,
            netns,
            json!({"cniVersion": "1.1.0", "name": "causeway"}),
        )
    }

    fn run_with(&self, command: &str, id: &str, netns: &str, mut conf: Value) -> Ran {
        conf["type"] = json!("causeway-cni");
        conf["socket"] = json!(self.socket);
        conf["hostLocal"] = json!(self.directory.join("networks"));
        self.run_program(env!("CARGO_BIN_EXE_causeway-cni"), command, id, netns, &conf)
    }

    /// The runtime tells that the pod is `default/web-0`.
    fn run_program(&self, program: &str, command: &str, id: &str, netns: &str, conf: &Value) -> Ran {
        let mut program = Command::new(program);
        program.env_clear().envs([
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
            ),
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", REFERENCE),
        ]);
        let ran =
            run_in(&self.host.place(), &mut program, conf.to_string().as_bytes()).expect("run the plugin");
        let output = if ran.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&ran.stdout).expect(&ran.stdout)
        };
        Ran {
            code: ran.status.code(),
            output,
        }
    }

    fn routes(&self) -> String {
        self.host.command("ip", &["-4", "route"]).expect("run ip").stdout
    }
}

fn decide(pods: &PodNetwork, request: Request) -> Response {
    let key = |key: &protocol::AttachmentKey| AttachmentKey {
        container_id: key.container_id.clone(),
        ifname: key.ifname.clone(),
    };
    let answer = match request {
        Request::Add {
            key: of,
            netns,
            pod,
            wishes,
            taken,
            ..
        } => pods
            .add(&Attachment {
                key: key(&of),
                netns,
                pod,
                wishes,
                taken: taken.into_iter().collect(),
            })
            .map(|plan| Response::Wired { plan }),
        Request::Check { key: of } => pods.check(&key(&of)).map(|plan| Response::Wired { plan }),
        Request::Del { key: of } => pods.remove(&key(&of)).map(|_| Response::Done),
        Request::Gc { valid } => {
            let valid: Vec<AttachmentKey> = valid.iter().map(key).collect();
            pods.retain(&valid).map(|_| Response::Done)
        }
        Request::Status => pods.ready().map(|()| Response::Done),
        Request::Unknown => Ok(Response::Done),
    };
    answer.unwrap_or_else(|error| {
        Response::Error(Failure {
            code: 3,
            msg: error.to_string(),
            details: String::new(),
        })
    })
}

mod privileged {
    use super::*;

    #[test]
    fn a_pod_is_added_checked_found_damaged_and_deleted_twice() {
        let Some(node) = Node::new("CNI verbs") else {
            return;
        };
        let _agent = node.agent();
        let pod = Host::new("pod").expect("make a namespace");
        let added = node.run("ADD", "c1", &pod.path());
        assert_eq!(added.code, Some(0), "{}", added.output);
        assert_eq!(added.output["cniVersion"], "1.1.0");
        assert_eq!(
            added.output["ips"],
            json!([{"address": "10.244.1.2/32", "gateway": "169.254.1.1", "interface": 1}])
        );
        let inside = pod.command("ip", &["-4", "route"]).expect("run ip").stdout;
        assert!(inside.contains("default via 169.254.1.1 dev eth0"), "{inside}");
        assert!(node.routes().contains("10.244.1.2 dev cw"), "{}", node.routes());
        // A list of all devices is as the kernel has seen them; asked for one, it would look anew.
        for (host, device) in [(&pod, " eth0@"), (&node.host, " cw")] {
            let links = host.command("ip", &["-o", "link"]).expect("run ip").stdout;
            let link = links.lines().find(|line| line.contains(device)).expect(&links);
            assert!(link.contains(" state UP "), "packets are lost: {link}");
        }

        assert_eq!(node.run("CHECK", "c1", &pod.path()).code, Some(0));
        pod.command("ip", &["route", "del", "default"]).expect("run ip");
        let checked = node.run("CHECK", "c1", &pod.path());
        assert_eq!((checked.code, &checked.output["code"]), (Some(1), &json!(101)));
        assert_eq!(checked.output["details"], "route to 0.0.0.0/0 is missing");
        assert_eq!(node.run("STATUS", "", "").code, Some(0));

        let again = node.run("ADD", "c1", &pod.path());
        assert_eq!(
            again.output["ips"], added.output["ips"],
            "an interrupted ADD is finished by the next"
        );
        assert_eq!(node.run("CHECK", "c1", &pod.path()).code, Some(0));

        for _ in 0..2 {
            assert_eq!(node.run("DEL", "c1", &pod.path()).code, Some(0));
            assert_eq!(node.pods.list(), []);
            assert!(!node.routes().contains("10.244.1.2"));
        }
        assert_eq!(node.run("DEL", "c1", "").code, Some(0), "without a namespace");
        assert_eq!(
            node.run("DEL", "c1", "/nonexistent").code,
            Some(0),
            "with one that is gone"
        );
    }

    /// As on a node that had amazon-vpc-cni-k8s, which calls its devices so, too.
    #[test]
    fn a_pod_of_a_vpc_is_called_after_its_name_unless_another_plugins_device_is_called_so() {
        let Some(node) = Node::new("CNI in a VPC") else {
            return;
        };
        node.pods.serve_pool(Pool {
            blocks: vec![Block {
                network: "10.0.0.16/28".parse().expect("a block"),
                device_index: 0,
            }],
            mtu: Mtu(9001),
            cool_down: Duration::ZERO,
            growth: Growth::Possible,
        });
        let agent = node.agent();
        let devices = || {
            let links = node.host.command("ip", &["-o", "link"]).expect("run ip").stdout;
            let names = links
                .lines()
                .filter_map(|line| line.split([' ', '@', ':']).find(|word| word.starts_with("eni")));
            let mut names: Vec<String> = names.map(str::to_owned).collect();
            names.sort();
            names
        };
        let web_0 = "eni0d7763386da";
        let theirs = |arguments: &[&str]| {
            node.host.command("ip", arguments).expect("run ip");
        };
        theirs(&["link", "add", web_0, "type", "bridge"]);
        let hosts = [(); 3].map(|()| Host::new("pod").expect("make a namespace"));
        let [first, second, third] = hosts.each_ref().map(Host::path);
        let added = node.run("ADD", "first", &first);
        let by_key = added.output["interfaces"][0]["name"]
            .as_str()
            .expect("a name")
            .to_owned();
        let mut both = vec![web_0.to_owned(), by_key.clone()];
        both.sort();
        assert_eq!(devices(), both);
        assert_eq!(node.run("CHECK", "first", &first).code, Some(0));
        assert_eq!(node.run("DEL", "first", &first).code, Some(0));
        assert_eq!(devices(), [web_0]);

        theirs(&["link", "delete", web_0]);
        let added = node.run("ADD", "second", &second);
        assert_eq!(added.output["interfaces"][0]["name"], web_0, "{}", added.output);
        // Deleted without agent and namespace.
        drop(agent);
        let conf = json!({"cniVersion": "1.1.0", "name": "causeway", "prevResult": added.output});
        assert_eq!(node.run_with("DEL", "second", "", conf).code, Some(0));
        assert_eq!(devices(), Vec::<String>::new());

        // A device that comes after the agent has looked.
        let attachment = Attachment {
            key: AttachmentKey {
                container_id: "third".to_owned(),
                ifname: "eth0".to_owned(),
            },
            netns: third.clone(),
            pod: Some(ObjectName::new("default", "web-1")),
            ..Attachment::default()
        };
        let plan = node.pods.add(&attachment).expect("an address");
        let apply = || {
            std::thread::scope(|scope| {
                let applied = scope.spawn(|| {
                    node.host.namespace().enter().expect("enter the node");
                    let mut sides = Sides::open(hosts[2].namespace()).expect("both sides");
                    sides.apply(&plan).map_err(|error| error.to_string())
                });
                applied.join().expect("no panic")
            })
        };
        let name = plan.host_ifname.as_str();
        theirs(&["link", "add", name, "type", "bridge"]);
        assert!(apply().is_err());
        assert_eq!(devices(), [name]);
        theirs(&["link", "set", name, "address", &plan.host_mac.to_string()]);
        apply().expect("its own end, left over");
        assert_eq!(devices(), [name]);
    }

    /// As on a node that had flannel: its pods go on, and the runtime deletes them by this plugin.
    #[test]
    fn a_pod_that_the_bridge_plugin_wired_keeps_its_address_until_this_one_deletes_it() {
        let Some(node) = Node::new("CNI after host-local") else {
            return;
        };
        let _agent = node.agent();
        let hosts = [(); 4].map(|()| Host::new("pod").expect("make a namespace"));
        let [old, fresh, later, last] = hosts.each_ref().map(Host::path);
        let ipam = json!({
            "type": "host-local", "subnet": "10.244.1.0/24", "dataDir": node.directory.join("networks"),
        });
        let bridge = json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam,
        });
        let theirs = node.run_program(&format!("{REFERENCE}/bridge"), "ADD", "old", &old, &bridge);
        assert_eq!(
            theirs.output["ips"][0]["address"], "10.244.1.2/24",
            "{}",
            theirs.output
        );

        let address = |id: &str, netns: &str| {
            let added = node.run("ADD", id, netns);
            added.output["ips"][0]["address"]
                .as_str()
                .expect("one address")
                .to_owned()
        };
        assert_eq!(address("fresh", &fresh), "10.244.1.3/32");
        let wished =
            json!({"cniVersion": "1.1.0", "name": "causeway", "runtimeConfig": {"ips": ["10.244.1.2"]}});
        let refused = node.run_with("ADD", "later", &later, wished);
        assert_eq!(refused.code, Some(1), "{}", refused.output);
        assert_eq!(node.run("DEL", "old", &old).code, Some(0));
        assert_eq!(address("later", &later), "10.244.1.2/32");
        assert_eq!(address("last", &last), "10.244.1.4/32");
    }

    #[test]
    fn a_device_of_somebody_else_is_refused_and_nothing_is_kept() {
        let Some(node) = Node::new("CNI conflict") else {
            return;
        };
        let _agent = node.agent();
        let pod = Host::new("pod").expect("make a namespace");
        pod.command("ip", &["link", "add", "eth0", "type", "bridge"])
            .expect("run ip");
        let refused = node.run("ADD", "c1", &pod.path());
        assert_eq!((refused.code, &refused.output["code"]), (Some(1), &json!(100)));
        assert_eq!(refused.output["msg"], "device eth0 exists in the pod already");
        assert_eq!(node.pods.list(), []);
        let own = node.run("ADD", "c1", &node.host.path());
        assert_eq!(own.output["code"], 4, "{}", own.output);
        let gone = node.run("ADD", "c1", "/nonexistent");
        assert_eq!(gone.output["code"], 3, "{}", gone.output);
    }

    #[test]
    fn without_the_agent_add_says_try_again_and_del_cleans_up_and_leaves_a_tombstone() {
        let Some(node) = Node::new("CNI without agent") else {
            return;
        };
        let pod = Host::new("pod").expect("make a namespace");
        let agent = node.agent();
        assert_eq!(node.run("ADD", "c1", &pod.path()).code, Some(0));
        drop(agent);
        let other = Host::new("pod").expect("make a namespace");
        for (command, code) in [("ADD", 11), ("STATUS", 50), ("CHECK", 11)] {
            let ran = node.run(command, "c2", &other.path());
            assert_eq!(
                (ran.code, &ran.output["code"]),
                (Some(1), &json!(code)),
                "{command}: {}",
                ran.output
            );
        }
        assert_eq!(node.run("DEL", "c1", &pod.path()).code, Some(0));
        assert!(!node.routes().contains("10.244.1.2"), "{}", node.routes());
        assert_eq!(node.pods.list().len(), 1);
        let replayed = tombstone::replay(&tombstone::directory(&node.socket), |key| {
            let key = AttachmentKey {
                container_id: key.container_id.clone(),
                ifname: key.ifname.clone(),
            };
            node.pods.remove(&key).map(drop).map_err(std::io::Error::other)
        });
        assert_eq!(replayed.expect("replay"), 1);
        assert_eq!(node.pods.list(), []);
    }

    #[test]
    fn gc_keeps_what_is_listed_and_removes_the_rest_with_its_device() {
        let Some(node) = Node::new("CNI GC") else { return };
        let _agent = node.agent();
        let pods = [Host::new("pod").expect("make"), Host::new("pod").expect("make")];
        for (pod, id) in pods.iter().zip(["c1", "c2"]) {
            assert_eq!(node.run("ADD", id, &pod.path()).code, Some(0));
        }
        let conf = json!({"cniVersion": "1.1.0", "name": "causeway",
            "cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]});
        let ran = node.run_with("GC", "", "", conf);
        assert_eq!(ran.code, Some(0), "{}", ran.output);
        let routes = node.routes();
        assert!(
            !routes.contains("10.244.1.2 ") && routes.contains("10.244.1.3 "),
            "{routes}"
        );
        assert_eq!(node.pods.list().len(), 1);
    }

    #[test]
    fn versions_are_told_and_results_have_the_asked_one() {
        let Some(node) = Node::new("CNI versions") else {
            return;
        };
        let _agent = node.agent();
        let versions = node.run("VERSION", "", "").output;
        assert_eq!(versions["supportedVersions"].as_array().map(Vec::len), Some(7));
        for (number, version) in ["0.2.0", "0.3.1", "0.4.0", "1.0.0"].into_iter().enumerate() {
            let pod = Host::new("pod").expect("make");
            let conf = json!({"cniVersion": version, "name": "causeway"});
            let ran = node.run_with("ADD", &format!("c{number}"), &pod.path(), conf);
            assert_eq!(
                (ran.code, &ran.output["cniVersion"]),
                (Some(0), &json!(version)),
                "{}",
                ran.output
            );
        }
    }

    #[test]
    fn forty_pods_are_added_one_by_one_and_eight_at_once() {
        let Some(node) = Node::new("CNI timing") else {
            return;
        };
        let _agent = node.agent();
        let pods: Vec<Host> = (0..40).map(|_| Host::new("pod").expect("make")).collect();
        let timed = |number: usize, pod: &Host| {
            let began = Instant::now();
            let ran = node.run("ADD", &format!("c{number}"), &pod.path());
            assert_eq!(ran.code, Some(0), "{}", ran.output);
            began.elapsed()
        };
        let mut alone: Vec<Duration> = pods
            .iter()
            .enumerate()
            .map(|(number, pod)| timed(number, pod))
            .collect();
        alone.sort();
        for (number, pod) in pods.iter().enumerate() {
            assert_eq!(node.run("DEL", &format!("c{number}"), &pod.path()).code, Some(0));
        }
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            for (first, chunk) in pods.chunks(5).enumerate() {
                let (sender, timed) = (sender.clone(), &timed);
                scope.spawn(move || {
                    for (number, pod) in chunk.iter().enumerate() {
                        sender
                            .send(timed(1000 + first * 5 + number, pod))
                            .expect("collected");
                    }
                });
            }
        });
        drop(sender);
        let mut together: Vec<Duration> = receiver.iter().collect();
        together.sort();
        assert_eq!(node.pods.list().len(), 40);
        eprintln!(
            "ADD p50: {:?} one by one, {:?} eight at once",
            alone[20], together[20]
        );
    }
}
