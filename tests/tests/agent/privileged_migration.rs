//! What `causeway migrate check --node` sees of other programs on a node.

use tests::cluster::program;
use tests::directory::Directory;
use tests::process;
use tests::topology::Lan;

#[test]
fn devices_tables_and_chains_of_others_are_told_with_what_becomes_of_them() -> anyhow::Result<()> {
    if !tests::privileged("devices, tables and chains of others are told") {
        return Ok(());
    }
    let lan = Lan::new("migrate", "172.30.8.0/24".parse()?, 1)?;
    let host = &lan.hosts.first().expect("one was asked for").host;
    let directory = Directory::new("migrate-node");
    let network = directory.write(
        "net-conf.json",
        r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#,
    );
    let told = || -> anyhow::Result<String> {
        let place = host.place();
        let mut command = process::command(&place, program("causeway"));
        command.args(["migrate", "check", "--node"]).arg(&network);
        let output = process::run_in(&place, &mut command, b"")?;
        Ok(output.stderr)
    };
    let before = told()?;
    for nothing in ["KUBE-*", "table ip", "device"] {
        assert!(!before.contains(nothing), "{before}");
    }
    let prepare = [
        "ip link add flannel.1 address 02:00:00:00:00:07 type vxlan id 1 dstport 8472 dev eth0 nolearning",
        "nft add table ip kube-proxy",
        "iptables-legacy -t nat -N KUBE-SERVICES",
    ];
    for line in prepare {
        let words: Vec<&str> = line.split(' ').collect();
        let output = host.command(words[0], &words[1..])?;
        anyhow::ensure!(output.status.success(), "{line}: {}", output.stderr);
    }
    let after = told()?;
    for line in [
        "taken          this node   device flannel.1: VNI 1, port 8472, MAC 02:00:00:00:00:07",
        "differs        this node   table ip kube-proxy",
        "differs        this node   chains KUBE-* of iptables",
    ] {
        assert!(after.contains(line), "no {line:?} in\n{after}");
    }
    Ok(())
}
