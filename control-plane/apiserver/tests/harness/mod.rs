//! A store, certificates and a kubeconfig for one API server: what the integration tests and the standalone example
//! start from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use apiserver::{Config, EtcdConfig, Features, Limits};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Certificates, keys and the kubeconfig in one directory.
pub struct Files {
    directory: PathBuf,
}

impl Files {
    /// Makes everything anew.
    pub fn create(directory: &Path, port: u16) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory).context("make the directory")?;
        let files = Files {
            directory: directory.to_owned(),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "cwt-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        std::fs::write(files.path("ca.crt"), ca.pem())?;
        files.issue(&ca, "apiserver", "kube-apiserver", &[])?;
        files.issue(
            &ca,
            "kubelet-client",
            "kube-apiserver-kubelet-client",
            &["system:masters"],
        )?;
        files.issue(&ca, "admin", "admin", &["system:masters"])?;
        files.issue(&ca, "node", "system:node:n1", &["system:nodes"])?;
        std::fs::write(files.path("sa.key"), KeyPair::generate()?.serialize_pem())?;
        for user in ["admin", "node"] {
            std::fs::write(files.kubeconfig_of(user), files.kubeconfig_text(user, port))?;
        }
        Ok(files)
    }

    /// The admin's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_of("admin")
    }

    /// The kubeconfig of `admin` or `node`.
    pub fn kubeconfig_of(&self, user: &str) -> PathBuf {
        self.path(&format!("{user}.kubeconfig"))
    }

    /// A file of the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The server's configuration.
    pub fn config(&self, port: u16, etcd: &str) -> Config {
        Config {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))],
            cert: self.path("apiserver.crt"),
            key: self.path("apiserver.key"),
            client_ca: self.path("ca.crt"),
            sa_signing_key: self.path("sa.key"),
            sa_issuer: Config::DEFAULT_ISSUER.to_owned(),
            etcd: EtcdConfig::plain(etcd),
            service_cidrs: "10.96.0.0/12".parse().expect("invariant: a constant"),
            node_port_range: Config::DEFAULT_NODE_PORTS,
            kubelet_client_cert: self.path("kubelet-client.crt"),
            kubelet_client_key: self.path("kubelet-client.key"),
            nearby_nodes: vec![Ipv4Addr::LOCALHOST.into()],
            limits: Limits::default(),
            features: Features::default(),
        }
    }

    fn issue(
        &self,
        ca: &CertifiedIssuer<'_, KeyPair>,
        file: &str,
        name: &str,
        groups: &[&str],
    ) -> anyhow::Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.subject_alt_names = vec![
            SanType::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST)),
            SanType::DnsName("localhost".try_into()?),
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, ca)?;
        std::fs::write(self.path(&format!("{file}.crt")), certificate.pem())?;
        std::fs::write(self.path(&format!("{file}.key")), key.serialize_pem())?;
        Ok(())
    }

    fn kubeconfig_text(&self, user: &str, port: u16) -> String {
        let file = |name: &str| self.path(name).display().to_string();
        let (ca, cert, key) = (
            file("ca.crt"),
            file(&format!("{user}.crt")),
            file(&format!("{user}.key")),
        );
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: cwt\n\
             clusters: [{{name: cwt, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority: {ca}}}}}]\n\
             users: [{{name: {user}, user: {{client-certificate: {cert}, client-key: {key}}}}}]\n\
             contexts: [{{name: cwt, context: {{cluster: cwt, user: {user}}}}}]\n"
        )
    }
}

/// What the API server keeps its objects in.
pub enum Etcd {
    /// A real etcd of our own, killed with this value.
    Process(String, Child),
    /// The bundled store, in this process.
    Bundled {
        /// Where it listens.
        endpoint: String,
        /// Ends it.
        _running: DropGuard,
    },
}

impl Etcd {
    /// Starts the bundled store, its data in `directory`.
    pub async fn bundled(directory: &Path) -> anyhow::Result<Self> {
        let listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
        let server = store::Server::bind(store::Config::new(directory.join("store"), listen)).await?;
        let address = *server
            .local_addrs()
            .first()
            .context("the store listens nowhere")?;
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        tokio::spawn(async move {
            if let Err(error) = server.run(shutdown).await {
                eprintln!("the bundled store failed: {error}");
            }
        });
        Ok(Etcd::Bundled {
            endpoint: format!("http://{address}"),
            _running: guard,
        })
    }

    /// Starts the etcd that [`Etcd::binary`] finds, its data in `directory`.
    pub fn real(directory: &Path) -> anyhow::Result<Self> {
        let data = directory.join("etcd");
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        Etcd::real_at(directory, &format!("http://127.0.0.1:{}", free_port()?), &[])
    }

    /// The same at a URL, with what was there before, and with further flags.
    pub fn real_at(directory: &Path, client: &str, flags: &[String]) -> anyhow::Result<Self> {
        let binary = Etcd::binary().context("no etcd: install Debian's etcd-server or set ETCD_BINARY")?;
        let peer = format!("http://127.0.0.1:{}", free_port()?);
        let child = Command::new(&binary)
            .args(["--name", "cwt", "--data-dir"])
            .arg(directory.join("etcd"))
            .args(["--listen-client-urls", client, "--advertise-client-urls", client])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("cwt={peer}")])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        Ok(Etcd::Process(client.to_owned(), child))
    }

    /// `ETCD_BINARY`, the one in `target/tools`, or the one on PATH.
    pub fn binary() -> Option<PathBuf> {
        let named = std::env::var_os("ETCD_BINARY").map(PathBuf::from);
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/usr/bin/etcd");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).map(|directory| directory.join("etcd"));
        named
            .into_iter()
            .chain([unpacked])
            .chain(on_path)
            .find(|candidate| candidate.is_file())
    }

    /// Where clients connect.
    pub fn endpoint(&self) -> &str {
        match self {
            Etcd::Process(endpoint, _) | Etcd::Bundled { endpoint, .. } => endpoint,
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Etcd::Process(_, child) = self {
            drop(child.kill().and_then(|()| child.wait()));
        }
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Below the ports that the kernel gives to outgoing connections, of which this test makes many, and no port twice:
    // one that was free a moment ago may be anybody's by now.
    let first = std::process::id().wrapping_mul(64) % 10_000;
    for _ in 0..1000 {
        let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        let port = u16::try_from(20_000 + offset)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port from 20000 to 29999 is free")
}
