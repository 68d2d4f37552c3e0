//! Commands, options and help texts.

mod bench;
mod bundle;
mod diagnose;
mod on;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::bench::{BenchArgs, BenchCommand, CompareArgs, ReportArgs};
pub use bundle::{BundleArgs, BundleCommand, ReplayArgs, ReplayQuestion};
pub use diagnose::{
    CaptureArgs, ConnectivityArgs, DoctorArgs, DropsArgs, ExplainArgs, FlowsArgs, FlowsVerdict, Lines,
    Stream, TraceArgs,
};

pub use on::{OnArgs, ServerArgs};

use crate::config::{Config, LogFormat, which};
use crate::migrate::kinds::Kind;

/// Where the configuration of an agent is that was told nothing else.
pub const NODE_CONFIG: &str = "/etc/causeway/node.yaml";

/// Networking for Kubernetes nodes: service proxy, pod network and cluster DNS.
#[derive(Debug, Parser)]
#[command(
    name = "causeway",
    disable_version_flag = true,
    after_help = "Exit codes: 0 = good, 1 = found something wrong, 2 = could not run.\n\
                  Logs go to standard error; CAUSEWAY_LOG=debug shows more (tracing's filter syntax)."
)]
pub struct Cli {
    /// End as by Ctrl-C once standard input ends: for who runs this over a connection that may break
    #[arg(long, hide = true)]
    pub while_input_is_open: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a whole cluster on this machine
    #[command(disable_help_flag = true)]
    Up(Handed),
    /// Stop the cluster that `up` started
    #[command(disable_help_flag = true)]
    Down(Handed),
    /// Show the cluster that `up` started
    #[command(disable_help_flag = true)]
    Status(Handed),
    /// Bring images to the nodes of that cluster, list them, take them away
    #[command(disable_help_flag = true)]
    Image(Handed),
    /// Run the agent of a node
    #[command(after_help = "Examples:
  causeway node --config /etc/causeway/node.yaml
  causeway node config check --config node.yaml    # exit code 1 and a line for each problem
  causeway node config print --config node.yaml    # what is in effect, defaults included
  CAUSEWAY_LOG=causeway=debug causeway node        # reads /etc/causeway/node.yaml")]
    Node(NodeArgs),
    /// Run the DNS server
    #[command(after_help = "Examples:
  causeway dns --conf /etc/causeway/Corefile
  causeway dns check Corefile                      # exit code 1 and file:line where it is wrong
  causeway dns query web.default.svc.cluster.local # the answer, and which block, plugin and object gave it
  dig @10.96.0.10 kubernetes.default.svc.cluster.local")]
    Dns(DnsArgs),
    /// Tell what is wrong on this node, as its agent sees it
    #[command(after_help = "Examples:
  causeway doctor                                  # asks the agent of this machine
  causeway doctor -o json | jq '.findings[].id'
  causeway doctor --fix                            # puts right what is programmed otherwise than planned
  causeway doctor --node-name node-1               # of several nodes of `causeway up`, wherever it has its state
Exit codes: 0 = nothing is wrong, 1 = something is, 2 = no agent answers.
Without --config it is the agent of /etc/causeway/node.yaml, else the only one of `causeway up` on this machine, or that
of --node-name.")]
    Doctor(DoctorArgs),
    /// Follow a packet and its reply through this machine, hop by hop, or to where it is dropped
    #[command(after_help = "Examples:
  causeway trace pod/client pod/server:8080        # waits for the next packet of this kind
  causeway trace 'pod/shop/client -> 10.244.2.3:8080/tcp' --inject
  causeway trace any 10.244.2.3:53/udp -o json | jq .verdict
  causeway trace pod/client 10.244.2.3:8080 --for 3s             # and what comes after the first reply
  causeway trace pod/client svc/web:http           # to the Service's address and to any of its endpoints
  causeway trace pod/client 10.96.0.10:53/udp --inject           # port 53 is asked a question, so that it answers
Ends are pod/NAME, pod/NAMESPACE/NAME, node/NAME, an address, a DNS name, or any; the other one may be svc/NAME:PORT too.
NAME or NAME.NAMESPACE is the one object of that name. Names without a namespace are of --namespace, else of default. A port and a protocol stand behind the other one: :80, :53/udp, /icmp, [fd00::1]:80.
pod/shop/udp is a pod of shop called udp; by that protocol it is pod/default/shop/udp. The shell takes an arrow for
itself: quote it, or leave it out.
Exit codes: 0 = answered or delivered, 1 = dropped, refused, not answered, or gone the wrong way, 2 = could not run,
nothing was seen, or it left this machine by a device and only another machine can tell more.
Pods of this machine are known by what its agents wrote down; Services, nodes and other pods an agent must tell. Ctrl-C
ends it early and tells what was seen until then.")]
    Trace(TraceArgs),
    /// Count what this machine drops, by whom it was and why
    #[command(after_help = "Examples:
  causeway drops                                   # counts for ten seconds; Ctrl-C ends it sooner
  causeway drops --for 1m --namespace shop         # of the pods of a namespace
  causeway drops --pod shop/web --follow           # tells each second what was dropped in it
  causeway drops -o json | jq '.drops[] | {packets, reason, place, at}'
  causeway drops --config /var/lib/causeway/nodes/node-1/agent.yaml \\
    --config /var/lib/causeway/nodes/node-2/agent.yaml           # nodes of `causeway up`
Exit codes: 0 = nothing was dropped that somebody misses, 1 = something was, 2 = could not run, or not all was counted.
All network namespaces of the machine are looked at. What is part of normal traffic is counted and not told without
--all: packets of TCP connections that are over, what TCP has had already, packets to many that nobody here waits for,
and those of unix and netlink sockets. -o json and ndjson tell times in UTC, bytes from the IP header on.")]
    Drops(DropsArgs),
    /// Show who sends to whom on this machine, and what is dropped of it
    #[command(after_help = "Examples:
  causeway flows                                   # what passes in ten seconds; Ctrl-C ends it sooner
  causeway flows --follow --verdict DROPPED
  causeway flows --namespace shop                  # of the pods and Services of a namespace
  causeway flows --to pod/shop/web:8080 --for 30s  # requests; --from pod/shop/web are the replies
  causeway flows -n shop --service web -o json | jq '.flows[] | {source, destination, packets}'
  causeway flows --follow -o ndjson | jq -r '[.verdict, .IP.source, .IP.destination, .Summary] | @tsv'
Exit codes: 0 = nothing was dropped that was told, 1 = something was, 2 = could not run.
A packet is counted where a socket of this machine sends it, and where it comes to a network namespace with its
receiver's address; what is on its way between other machines is not. A flow is told under its real ends, with the
Service's address where connection tracking knows that it was translated, or where the agent's socket hook translated a
TCP connection that began meanwhile. What is within VXLAN is told as what it is, also where it is dropped there. Agents
are asked what addresses are called when those were seen, again after ten seconds; -o json and ndjson have the names of
Hubble's fields, and packets and bytes beside them.")]
    Flows(FlowsArgs),
    /// Tell what becomes of a packet, without sending one
    #[command(after_help = "Examples:
  causeway explain pod/default/client svc/default/web:80
  causeway explain 'pod/client -> svc/web:http'    # quoted, since the shell has its own use for >
  causeway explain node/node-1 10.96.0.10:53/udp   # by address; the protocol is tcp where nothing tells
  causeway explain pod/client web.default.svc.cluster.local:80 -o json | jq '.forward[].problems'
Exit codes: 0 = nothing stands in the way as far as this node sees, 1 = it would fail, or gets what the objects do not
say, 2 = something could not be told.
Ends are pod/NAME, pod/NAMESPACE/NAME, svc/NAME:PORT, svc/NAMESPACE/NAME:PORT (the port by number or name), node/NAME,
an address or a DNS name, as causeway trace reads them. The agent of the client's
node knows the most: its own pods, and others as endpoints of Services. Without --config it is the agent of
/etc/causeway/node.yaml, else the only one of `causeway up` on this machine. Without an agent only addresses and the
pods of its node are understood, and only what the kernel has is shown.
The first line is the verdict. PROBLEM stands where it fails; DIFFERS where something is programmed otherwise than
planned, and the packet does well all the same.")]
    Explain(ExplainArgs),
    /// Write packets of a pod to a file, as each device of this machine that they pass sees them
    #[command(after_help = "Examples:
  causeway capture pod/shop/web -w web.pcapng      # until it is interrupted
  causeway capture pod/client --to svc/web:http --for 10s -w -  | tshark -r - -Y tcp.flags.syn
  causeway capture 10.244.2.3:53/udp --count 20    # a line for each packet instead of a file
  causeway capture -n shop svc/web:http -o ndjson  # a line of JSON for each packet
  causeway capture pod/client --drops -w client.pcapng
Exit codes: 0 = the file has all packets, 1 = the kernel had no room for some, 2 = could not run.
The file (pcapng) has an interface for each device: the pod's, the node's end of it, the tunnel, the uplink; and, with
--drops, one for packets that the kernel dropped, each with its reason in its comment. Packets are chosen in the kernel,
by their own addresses or by those of the packet in VXLAN; ends are those of causeway trace, a Service with its endpoints,
of all its ports where none is named. Packets of devices without a link layer (tun, WireGuard) are written as they are.
What NAT makes of a packet is seen where both ends are as they are named here; --to may be given again for other
addresses.")]
    Capture(CaptureArgs),
    /// Try who reaches whom in a cluster, with pods that are put up for it
    #[command(after_help = "Examples:
  causeway connectivity                            # two nodes of the cluster that kubectl would ask
  causeway connectivity --nodes node-1,node-3
  causeway connectivity --external 198.51.100.7:443
  causeway connectivity -o json | jq '.cells[] | select(.ok | not)'
Exit codes: 0 = everything is reached, 1 = something is not, 2 = nothing could be tried.
A namespace is made, with three pods on each node and Services of theirs, and removed at the end, also where it is
interrupted; what a killed run left goes at the start of the next. Nothing outside of the cluster is asked, unless it is
named. tcp+ and udp+ are packets as large as the way takes, which nobody may cut up. Where a failure's packets pass this
machine, and this is root, it is told what causeway trace says of them.
The nodes need the image: causeway up has it, elsewhere causeway image build --from-binary makes one of the program
testserver, and --image names it. Its entrypoint and path are /testserver.")]
    Connectivity(ConnectivityArgs),
    /// Measure what packets cost on this machine, ours beside what the kernel does by itself
    #[command(after_help = "Examples:
  causeway bench                                   # all, into causeway-bench-TIME: results.json, report.html
  causeway bench tcp-rr --rounds 60 --out before
  causeway bench compare before/results.json after/results.json
  causeway bench report before/results.json -o before.html
Exit codes: 0 = all was measured, 1 = it was interrupted, and the files have the rounds that it had, 2 = could not run.
Everything is in network namespaces of its own, which go with it; what a killed run left goes at the start of the next.
An arm is said to take less or more where the 95 % interval of the median of its ratios leaves out 1, and where that is
not what an arm measured twice differs by from itself.")]
    Bench(BenchArgs),
    /// Write all that explain and doctor go by into a file, or ask such a file
    #[command(after_help = "Examples:
  causeway bundle                                  # writes causeway-NODE-TIME.tar.gz into this directory
  causeway bundle -o /tmp/node-1.tar.gz --since 30m
  causeway bundle --config /var/lib/causeway/nodes/node-1/agent.yaml   # a node of `causeway up`
  kubectl exec -n causeway POD -c agent -- causeway bundle -o - > node-1.tar.gz
  causeway bundle replay node-1.tar.gz explain pod/client svc/web:80   # by anybody, anywhere
Exit codes: 0 = everything is in it, 1 = something could not be had, which is told, 2 = there is no file.
It has the Services, EndpointSlices and nodes of the cluster, the node's devices, routes, neighbours and tunnels, what is
programmed, what doctor finds, the agent's status, metrics, configuration and log. No Secret, ConfigMap, environment,
token or key is in it; names and addresses are. Only its owner may read the file.")]
    Bundle(BundleArgs),
    /// Run a command that looks, on other nodes: in the pods of their agents, by the Kubernetes API
    #[command(after_help = "Examples:
  causeway on node-2 -- doctor
  causeway on --all -- doctor -o json | jq '.nodes[] | select(.exitCode != 0) | .node'
  causeway on -- explain pod/client svc/web:http   # on the node of pod/client
  causeway on node-1,node-2 -- drops --follow      # each line with its node
  causeway on --of pod/shop/web -- flows --for 30s
  causeway on -- capture pod/shop/web -w web.pcapng              # the file is written here
  causeway on --all --context production -- version
Exit codes: 0 = all nodes say 0, else the highest of what they say; 2 = one could not be asked.
What runs there: doctor, explain, trace, drops, flows, capture, node config print and check, version. Of one node that is
named, the output is passed on as it is. Of several, text stands under the node's name, which goes to standard error, or
behind it where the output goes on; -o json is one document: {\"nodes\": [{\"node\", \"exitCode\", \"output\"} or {\"node\",
\"error\"}]}; lines of JSON get a first member node; captures become one, whose interfaces bear the nodes' names.
Ctrl-C ends the commands there, and what they tell then is told. Pods of other nodes are named to them by their addresses.
It needs the rights to list pods, and to create and get pods/exec, in the agents' namespace: who has them can do on the
nodes what the agent can. With the right to get pods elsewhere it finds the nodes of pods. Agents that are no pods, as
those of causeway up, are asked on their own machine.")]
    On(OnArgs),
    /// Move a node from kube-proxy, flannel and CoreDNS
    #[command(subcommand)]
    Migrate(MigrateCommand),
    /// Print the version
    #[command(after_help = "Examples:
  causeway version
  causeway version -o json")]
    Version(VersionArgs),
}

/// A command line that `causeway-cluster` understands.
#[derive(Debug, Args)]
pub struct Handed {
    /// Options and arguments, as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// Options of `causeway node`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct NodeArgs {
    /// What else than to run.
    #[command(subcommand)]
    pub command: Option<NodeCommand>,
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Form of the log, in place of `logging.format` in the file
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
}

/// Commands below `causeway node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Put the CNI plugin where the container runtime looks for it
    #[command(after_help = "Examples:
  causeway node install-cni
  causeway node install-cni --to /host/opt/cni/bin
Exit codes: 0 = it is there, 2 = it is not; what was there before is as it was.
The plugin is replaced as a whole: who runs it goes on. The runtime uses it once the agent writes the configuration.")]
    InstallCni(InstallCniArgs),
    /// Take everything that the agent wrote off this node, for good
    #[command(after_help = "Examples:
  systemctl disable --now causeway-node && causeway node cleanup --config /etc/causeway/node.yaml
  causeway node cleanup --force                    # running pods lose their network
  causeway node cleanup --wait                     # begins once the last of them is gone
  causeway node cleanup -o json | jq .failed
  causeway node cleanup --kube-proxy               # kube-proxy has ended, the agent serves in its place
Exit codes: 0 = all of it is gone but for what is told as left, 1 = something could not be removed, or pods still
run, 2 = could not run, or the agent runs. With --kube-proxy the agent may run, and 2 is also where nobody else serves
Services, or where the chains are the agent's (proxy.datapath iptables).
What is told as left: kernel settings, annotations of the Node, a lease that is reserved or that etcd does not take
back, chains of iptables that may be kube-proxy's, and tables of iptables, which are everybody's. Directories that were
made for files, as /run/flannel, stay too, and so does what is not the agent's own.")]
    Cleanup(CleanupArgs),
    /// Do nothing until told to end
    #[command(after_help = "Examples:
  causeway node idle     # shows that the init containers of its pod are done, as in node/deploy/uninstall
Exit code: 0 = it was told to end.")]
    Idle,
}

/// Commands below `causeway node config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the configuration that is in effect, defaults included
    #[command(after_help = "Examples:\n  causeway node config print --config node.yaml")]
    Print(ConfigArgs),
    /// Tell what is wrong with the configuration
    #[command(after_help = "Examples:\n  causeway node config check --config node.yaml && echo good")]
    Check(ConfigArgs),
}

/// Options of `causeway node install-cni`.
#[derive(Debug, Args)]
pub struct InstallCniArgs {
    /// The plugin; beside this program by default
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// The runtime's directory of plugins
    #[arg(long, value_name = "DIRECTORY", default_value = "/opt/cni/bin")]
    pub to: PathBuf,
}

/// Options of `causeway node cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Where the agent's configuration is.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Also where pods run, which lose their network; with --kube-proxy, also where nobody else serves Services
    #[arg(long)]
    pub force: bool,
    /// Where the agent or pods run, wait until they have ended, instead of refusing
    #[arg(long, conflicts_with = "force")]
    pub wait: bool,
    /// Also the plugin that `install-cni` put into this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub cni_plugins: Option<PathBuf>,
    /// Also the snapshots that a DNS server kept in this directory (`state` in its Corefile)
    #[arg(long, value_name = "DIRECTORY")]
    pub dns_state: Option<PathBuf>,
    /// Only what kube-proxy left: its nftables tables and iptables chains. The agent may run
    #[arg(long, conflicts_with_all = ["wait", "cni_plugins", "dns_state"])]
    pub kube_proxy: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Where the configuration is.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = NODE_CONFIG)]
    pub config: PathBuf,
    /// The node's name, in place of `nodeName` in the file
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
}

/// Which agent of this machine is asked.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The agent's configuration; by default /etc/causeway/node.yaml, or that of the only node of `causeway up`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The node: of several agents of this machine its own is asked; beside --config the agent must be of it
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
}

impl AgentArgs {
    /// The agent's configuration.
    ///
    /// # Errors
    /// When there is none, several may be meant, or it is wrong.
    pub fn load(&self) -> anyhow::Result<Config> {
        Ok(which::agent(self.config.as_deref(), self.node_name.as_deref())?)
    }
}

/// Options of `causeway dns`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DnsArgs {
    /// What else than to run.
    #[command(subcommand)]
    pub command: Option<DnsCommand>,
    /// The Corefile
    #[arg(long, value_name = "FILE", default_value = "/etc/causeway/Corefile")]
    pub conf: PathBuf,
    /// Warn of plugins that are not known, instead of refusing the Corefile
    #[arg(long)]
    pub lenient: bool,
    /// Form of the log
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// Commands below `causeway dns`.
#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// Tell what is wrong with a Corefile
    #[command(after_help = "Examples:
  causeway dns check /etc/causeway/Corefile && echo good
  causeway dns check Corefile -o json | jq -r '.errors[].message'
Exit codes: 0 = good, 1 = wrong, 2 = it cannot be read.")]
    Check(DnsCheckArgs),
    /// Ask the DNS server, and tell which block, plugin and object answered
    #[command(after_help = "Examples:
  causeway dns query web.default.svc.cluster.local       # asks the server that runs with /etc/causeway/Corefile
  causeway dns query _http._tcp.web.default.svc.cluster.local SRV --server 10.96.0.10
  causeway dns query 10.96.0.10                          # the names of an address
  causeway dns query web.default.svc.cluster.local -o json | jq .explanation
Exit codes: 0 = there are such records, 1 = there are none, 2 = nobody answers.
The question goes by TCP, so that nothing of the answer is cut off. The server explains itself to programs on its own
machine; of another server only the answer is shown.")]
    Query(DnsQueryArgs),
}

/// Options of `causeway dns check`.
#[derive(Debug, Args)]
pub struct DnsCheckArgs {
    /// The Corefile
    #[arg(value_name = "COREFILE", default_value = "/etc/causeway/Corefile")]
    pub corefile: PathBuf,
    /// Warn of plugins that are not known, as the server does with the same option
    #[arg(long)]
    pub lenient: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Options of `causeway dns query`.
#[derive(Debug, Args)]
pub struct DnsQueryArgs {
    /// The name, or an address whose names are asked for
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The record type: A, AAAA, SRV, PTR, TYPE65, ...
    #[arg(value_name = "TYPE")]
    pub qtype: Option<String>,
    /// The server, with its port where that is not 53, in place of the one that the Corefile describes
    #[arg(long, value_name = "ADDRESS")]
    pub server: Option<String>,
    /// The Corefile of the server
    #[arg(long, value_name = "FILE", default_value = "/etc/causeway/Corefile")]
    pub conf: PathBuf,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Commands below `causeway migrate`.
#[derive(Debug, Subcommand)]
pub enum MigrateCommand {
    /// Translate configurations into ours, and tell what becomes of each setting
    #[command(after_help = "Examples:
  kubectl -n kube-system get configmap kube-proxy -o yaml > kube-proxy.yaml
  kubectl -n kube-flannel get configmap kube-flannel-cfg -o yaml > flannel.yaml
  causeway migrate check kube-proxy.yaml flannel.yaml > node.yaml   # the configuration; the settings go to stderr
  causeway migrate check --from coredns Corefile
  causeway migrate check --node flannel.yaml     # and what is on this node: devices, chains, CNI configurations
  causeway migrate check kube-proxy.yaml -o json | jq '.settings[] | select(.outcome != \"taken\")'
Exit codes: 0 = all that is served stays, 1 = something would not be served, 2 = a file is not read or not known.
Without kube-proxy's configuration the agent is no proxy, without flannel's it makes no pod network.")]
    Check(MigrateCheckArgs),
}

/// Options of `causeway migrate check`.
#[derive(Debug, Args)]
pub struct MigrateCheckArgs {
    /// Configurations, or ConfigMaps with them as kubectl prints them
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// What each of them is, where that is not seen by what it says; what is seen to be something else is refused
    #[arg(long, value_enum, value_name = "PROGRAM")]
    pub from: Option<Kind>,
    /// Tell also what these programs have on this node, and what would become of it; nothing is changed
    #[arg(long)]
    pub node: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Options of `causeway version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_our_own_shows_examples() {
        fn check(command: &clap::Command) {
            // What is hidden is not for people.
            for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                let groups = command.get_subcommands().next().is_some();
                let handed = command.is_disable_help_flag_set();
                let help = command
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                let name = command.get_name();
                assert!(
                    help.contains("Examples:") || handed || matches!(name, "config" | "migrate"),
                    "{name} has no examples"
                );
                if groups {
                    check(command);
                }
            }
        }
        check(&Cli::command());
    }

    #[test]
    fn cluster_commands_keep_their_arguments_as_they_are() {
        let line = ["causeway", "up", "--nodes", "3", "-h", "--", "--x=y"];
        let Command::Up(handed) = Cli::try_parse_from(line).expect("valid").command else {
            panic!("not up");
        };
        assert_eq!(handed.arguments, ["--nodes", "3", "-h", "--", "--x=y"]);
    }

    #[test]
    fn the_corefile_is_an_option_of_the_server_and_an_argument_of_its_check() {
        let rows = [
            (vec!["dns", "--conf", "f"], "serve f"),
            (vec!["dns", "--conf", "f", "--lenient"], "serve f leniently"),
            (vec!["dns", "check", "f"], "check f"),
            (vec!["dns", "check", "--lenient", "f"], "check f leniently"),
            (
                vec!["dns", "query", "web", "--conf", "f"],
                "query web None None f",
            ),
            (
                vec![
                    "dns",
                    "query",
                    "web",
                    "SRV",
                    "--server",
                    "10.96.0.10",
                    "--conf",
                    "f",
                ],
                "query web Some(\"SRV\") Some(\"10.96.0.10\") f",
            ),
        ];
        for (line, expected) in rows {
            let line = ["causeway"].into_iter().chain(line);
            let Command::Dns(dns) = Cli::try_parse_from(line).expect("valid").command else {
                panic!("not dns");
            };
            let leniently = |lenient| if lenient { " leniently" } else { "" };
            let found = match dns.command {
                None => format!("serve {}{}", dns.conf.display(), leniently(dns.lenient)),
                Some(DnsCommand::Check(check)) => {
                    format!("check {}{}", check.corefile.display(), leniently(check.lenient))
                }
                Some(DnsCommand::Query(query)) => format!(
                    "query {} {:?} {:?} {}",
                    query.name,
                    query.qtype,
                    query.server,
                    query.conf.display()
                ),
            };
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_agents_configuration_is_named_before_or_after_the_command() {
        let rows = [
            (vec!["node", "--config", "f"], None),
            (vec!["node", "config", "print", "--config", "f"], Some("print")),
            (vec!["node", "config", "check", "--config", "f"], Some("check")),
            (vec!["node", "cleanup", "--config", "f"], Some("cleanup")),
        ];
        for (line, expected) in rows {
            let line = ["causeway"].into_iter().chain(line);
            let Command::Node(node) = Cli::try_parse_from(line).expect("valid").command else {
                panic!("not node");
            };
            let (config, command) = match node.command {
                None => (node.config, None),
                Some(NodeCommand::Config(ConfigCommand::Print(config))) => (config, Some("print")),
                Some(NodeCommand::Config(ConfigCommand::Check(config))) => (config, Some("check")),
                Some(NodeCommand::Cleanup(args)) => (args.config, Some("cleanup")),
                Some(command @ (NodeCommand::InstallCni(_) | NodeCommand::Idle)) => {
                    panic!("{command:?} names no configuration")
                }
            };
            assert_eq!((config.config, command), (PathBuf::from("f"), expected));
        }
    }
}
