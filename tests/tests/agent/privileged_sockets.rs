//! Who may speak to the agent's sockets.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tests::node::Node;

const NOBODY: u32 = 65_534;

/// Whether a user is answered at a socket, or why not, having said something or nothing.
fn ask(path: &str, words: &str, user: u32) -> anyhow::Result<String> {
    let script = "import socket, sys\n\
                  s = socket.socket(socket.AF_UNIX)\n\
                  s.settimeout(10)\n\
                  try:\n\
                  \x20   s.connect(sys.argv[1])\n\
                  \x20   s.sendall(sys.argv[2].encode())\n\
                  \x20   print('answer' if s.recv(100) else 'end')\n\
                  except OSError as error:\n\
                  \x20   print(type(error).__name__)\n";
    // Not the user's own Python, which nobody else may execute.
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", script, path, words]);
    let output = command.current_dir("/").uid(user).gid(user).output()?;
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn mode(path: &Path) -> anyhow::Result<(u32, u32)> {
    let data = std::fs::metadata(path)?;
    Ok((data.permissions().mode() & 0o7777, data.uid()))
}

#[test]
fn only_root_is_listened_to_at_the_agents_sockets_whatever_their_mode() -> anyhow::Result<()> {
    if !tests::privileged("only root is listened to at the agent's sockets") {
        return Ok(());
    }
    let node = Node::new("sockets")?;
    let config = node.configure(json!({
        "dns": {"feedSocket": node.path("run/dns.sock")},
        "network": {
            "leases": "kubernetes", "config": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}},
            "interface": "eth0", "subnetEnv": node.path("subnet.env"),
        },
        "proxy": {"pinDir": node.path("bpf")},
        "cni": {"socket": node.path("run/cni.sock"), "confDir": node.path("net.d")},
    }));
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.1.0/24"]},
    }));
    let agent = node.agent(&config);
    for part in ["dns-feed", "cni", "findings"] {
        node.until_working(part);
    }
    for directory in ["run", "state"] {
        assert_eq!(mode(Path::new(&node.path(directory)))?, (0o700, 0), "{directory}");
    }
    let everybody =
        |path: &str, mode: u32| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    everybody(&node.path(""), 0o755)?;
    let request = "POST /examine HTTP/1.0\r\nHost: agent\r\nContent-Type: application/json\r\n\
                   Content-Length: 13\r\n\r\n{\"fix\":false}";
    // The feed speaks first; four bytes tell the CNI server of a request that is too long.
    for (name, words, to_root) in [
        ("run/dns.sock", "", "answer"),
        ("state/agent.sock", request, "answer"),
        ("run/cni.sock", "long", "end"),
    ] {
        let path = node.path(name);
        assert_eq!(mode(Path::new(&path))?, (0o600, 0), "{name}");
        let directory = Path::new(&path)
            .parent()
            .expect("it has one")
            .display()
            .to_string();
        assert_eq!(ask(&path, words, NOBODY)?, "PermissionError", "{name}");
        // Somebody opened the door.
        everybody(&directory, 0o755)?;
        everybody(&path, 0o666)?;
        let refused = ask(&path, words, NOBODY)?;
        let ends = ["end", "ConnectionResetError", "BrokenPipeError"];
        assert!(ends.contains(&&*refused), "{name}: {refused}");
        assert_eq!(ask(&path, words, 0)?, to_root, "{name}");
    }
    let sent_away = agent.output().matches("sent away from a socket").count();
    assert_eq!(sent_away, 3, "{}", agent.output());
    Ok(())
}
