//! A real etcd that wants certificates and users, and one of which a member is away.

use apiserver::etcd::check;
use apiserver::{EtcdConfig, EtcdUser};
use etcd_client::{
    Certificate, Client as EtcdClient, ConnectOptions, Identity, Permission, PermissionType, TlsOptions,
};

use super::*;

const PREFIXES: [&str; 2] = ["/registry/", "/coreos.com/network/"];

/// An etcd with TLS and users, and what somebody needs to get in.
struct Secured {
    files: Files,
    etcd: Option<Etcd>,
    directory: Directory,
    url: String,
}

impl Secured {
    /// `None`, said loudly, where there is no etcd.
    async fn start(name: &str) -> anyhow::Result<Option<Self>> {
        if Etcd::binary().is_none() {
            eprintln!("SKIPPED: {name} needs Debian's etcd-server, or ETCD_BINARY");
            return Ok(None);
        }
        let directory =
            Directory(std::env::temp_dir().join(format!("cwt-api-{}-{name}", std::process::id())));
        let files = Files::create(&directory.0, free_port()?)?;
        Files::create(&directory.0.join("stranger"), free_port()?)?;
        let url = format!("https://127.0.0.1:{}", free_port()?);
        let mut secured = Secured {
            files,
            etcd: None,
            directory,
            url,
        };
        secured.run()?;
        secured.make_users().await?;
        Ok(Some(secured))
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let file = |name| self.files.path(name).display().to_string();
        let flags = [
            "--client-cert-auth".to_owned(),
            format!("--cert-file={}", file("apiserver.crt")),
            format!("--key-file={}", file("apiserver.key")),
            format!("--trusted-ca-file={}", file("ca.crt")),
        ];
        self.etcd = Some(Etcd::real_at(&self.directory.0, &self.url, &flags)?);
        Ok(())
    }

    async fn make_users(&self) -> anyhow::Result<()> {
        let read = |name| std::fs::read(self.files.path(name));
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(read("ca.crt")?))
            .identity(Identity::from_pem(read("admin.crt")?, read("admin.key")?));
        let mut etcd = EtcdClient::connect([&self.url], Some(ConnectOptions::new().with_tls(tls))).await?;
        eventually("etcd answers", async || Ok(etcd.status().await?)).await?;
        for (role, prefixes) in [("registry", &PREFIXES[..1]), ("both", &PREFIXES[..])] {
            etcd.role_add(role).await?;
            for prefix in prefixes {
                let all = Permission::new(PermissionType::Readwrite, *prefix).with_prefix();
                etcd.role_grant_permission(role, all).await?;
            }
        }
        for (user, role) in [("kube", "both"), ("narrow", "registry"), ("root", "root")] {
            etcd.user_add(user, "secret", None).await?;
            etcd.user_grant_role(user, role).await?;
        }
        etcd.auth_enable().await?;
        Ok(())
    }

    fn config(&self) -> anyhow::Result<EtcdConfig> {
        Ok(EtcdConfig {
            endpoints: vec![self.url.clone()],
            ca: Some(self.files.path("ca.crt")),
            cert: Some(self.files.path("admin.crt")),
            key: Some(self.files.path("admin.key")),
            user: Some(self.user("kube", "secret")?),
            prefix: "/registry".to_owned(),
        })
    }

    fn user(&self, name: &str, password: &str) -> anyhow::Result<EtcdUser> {
        let password_file = self.files.path(&format!("{password}.password"));
        std::fs::write(&password_file, format!("{password}\n"))?;
        Ok(EtcdUser {
            name: name.to_owned(),
            password_file,
        })
    }

    fn strangers(&self, name: &str) -> PathBuf {
        self.directory.0.join("stranger").join(name)
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_external_etcd_is_said() -> anyhow::Result<()> {
    let Some(secured) = Secured::start("etcd-errors").await? else {
        return Ok(());
    };
    let good = secured.config()?;
    let right = check(&good, &PREFIXES).await;
    ensure!(matches!(&right, Ok(warnings) if warnings.is_empty()), "{right:?}");
    let away = format!("https://127.0.0.1:{}", free_port()?);
    let (stranger, missing) = (
        |name| Some(secured.strangers(name)),
        secured.files.path("nowhere"),
    );
    let with = |change: &dyn Fn(&mut EtcdConfig)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    let (wrong, unknown, narrow) = (
        secured.user("kube", "wrong")?,
        secured.user("nobody", "secret")?,
        secured.user("narrow", "secret")?,
    );
    let rows = [
        (
            "a CA that etcd's certificate is not of",
            with(&|config| config.ca = stranger("ca.crt")),
            "no answer: invalid peer certificate: ",
        ),
        (
            "no certificate",
            with(&|config| (config.cert, config.key) = (None, None)),
            "no answer: ",
        ),
        (
            "a stranger's certificate",
            with(&|config| (config.cert, config.key) = (stranger("admin.crt"), stranger("admin.key"))),
            "no answer: ",
        ),
        (
            "a certificate without its key",
            with(&|config| config.key = stranger("admin.key")),
            "set up the connection to etcd: ",
        ),
        (
            "a wrong password",
            with(&|config| config.user = Some(wrong.clone())),
            "the user kube is not let in: etcdserver: authentication failed, invalid user ID or password",
        ),
        (
            "a user that is not there",
            with(&|config| config.user = Some(unknown.clone())),
            "the user nobody is not let in: etcdserver: authentication failed, invalid user ID or password",
        ),
        (
            "a user with too few rights",
            with(&|config| config.user = Some(narrow.clone())),
            "below /coreos.com/network/ reading and writing is not allowed: etcdserver: permission denied",
        ),
        (
            "a password file that is not there",
            with(&|config| {
                config.user = Some(EtcdUser {
                    password_file: missing.clone(),
                    ..narrow.clone()
                });
            }),
            "read ",
        ),
        (
            "nobody there",
            with(&|config| config.endpoints = vec![away.clone()]),
            "Connection refused",
        ),
    ];
    for (what, config, wanted) in rows {
        let errors = match check(&config, &PREFIXES).await {
            Ok(warnings) => anyhow::bail!("{what}: {warnings:?}"),
            Err(errors) => errors,
        };
        let told = errors[0].to_string();
        println!("{what}: {told}");
        ensure!(errors.len() == 1 && told.contains(wanted), "{what}: {told}");
    }
    let one_away = with(&|config| config.endpoints.insert(0, away.clone()));
    let warnings = check(&one_away, &PREFIXES).await;
    ensure!(
        matches!(&warnings, Ok(warnings) if warnings.len() == 1 && warnings[0].to_string().starts_with(&away)),
        "{warnings:?}"
    );
    Ok(())
}

/// A port that leads to another as long as this value lives.
struct Forward(u16, tokio::task::JoinHandle<()>);

impl Forward {
    async fn to(from: u16, to: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", from)).await?;
        let from = listener.local_addr()?.port();
        let accept = async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut inside, _)) = listener.accept().await {
                connections.spawn(async move {
                    let mut outside = TcpStream::connect(("127.0.0.1", to)).await?;
                    tokio::io::copy_bidirectional(&mut inside, &mut outside).await
                });
            }
        };
        Ok(Forward(from, tokio::spawn(accept)))
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.1.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_etcd_with_users_is_served_from_through_what_happens_to_it() -> anyhow::Result<()> {
    let Some(mut secured) = Secured::start("etcd-users").await? else {
        return Ok(());
    };
    let etcd_port: u16 = secured.url.rsplit(':').next().context("a port")?.parse()?;
    let away = free_port()?;
    let forward = Forward::to(0, etcd_port).await?;
    let member = forward.0;
    let mut etcd = secured.config()?;
    etcd.endpoints = vec![
        format!("https://127.0.0.1:{away}"),
        format!("https://127.0.0.1:{member}"),
        secured.url.clone(),
    ];
    let port = free_port()?;
    let files = Files::create(&secured.directory.0.join("api"), port)?;
    let config = apiserver::Config {
        etcd,
        ..files.config(port, "")
    };
    let server = apiserver::Server::bind(config).await?;
    let shutdown = CancellationToken::new();
    let _guard = shutdown.clone().drop_guard();
    tokio::spawn(async move { server.run(shutdown).await });
    let client = client(&files).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    many_writes(&maps, "with a member away").await?;

    drop(forward);
    many_writes(&maps, "with another away").await?;
    let forward = Forward::to(member, etcd_port).await?;

    // etcd's simple tokens are in its memory: after a restart ours is not valid.
    secured.etcd = None;
    secured.run()?;
    many_writes(&maps, "after a restart of etcd").await?;
    drop(forward);
    Ok(())
}

/// Waits until a row of writes succeeds: more than could all go to the right members by chance.
async fn many_writes(maps: &Api<ConfigMap>, when: &str) -> anyhow::Result<()> {
    const IN_A_ROW: usize = 30;
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"generateName": "map-"}}))?;
    let mut rows = 0;
    eventually(when, async || {
        rows += 1;
        for written in 0..IN_A_ROW {
            let made = maps.create(&PostParams::default(), &map).await;
            made.with_context(|| format!("after {written} writes in a row"))?;
        }
        Ok(())
    })
    .await?;
    println!("{when}: {IN_A_ROW} writes in a row, the {rows}. time");
    Ok(())
}
