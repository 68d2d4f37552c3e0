//! The programs of one version of IP, in the variant that the host uses.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use model::IpFamily;
use netlink::{Namespace, sysctl};

use super::rule::Rule;
use super::ruleset::{Ruleset, Table, parse_chain};
use crate::Error;

/// Which of the kernel's two interfaces the programs speak to. Rules of both are in force at once, so that what one
/// drops no rule of the other saves: all of a host should use the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// As the host has it: where kubelet left its hint (KEP-3178); else where there are more rules; else what
    /// `iptables` is.
    #[default]
    Auto,
    /// `iptables-legacy`: x_tables.
    Legacy,
    /// `iptables-nft`: nf_tables.
    Nft,
}

/// For how long a program waits for the lock that all users of x_tables share.
const LOCK_SECONDS: &str = "5";

/// Where distributions put them; a service's `PATH` often lacks these.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// The programs of one version of IP.
#[derive(Clone, Debug)]
pub struct Programs {
    family: IpFamily,
    variant: Variant,
    /// Where they run.
    namespace: Namespace,
    command: PathBuf,
    save: PathBuf,
    restore: PathBuf,
}

impl Programs {
    /// Finds those of the host. They always run in the network namespace in which this was called.
    pub fn find(family: IpFamily, variant: Variant) -> Result<Self, Error> {
        match variant {
            Variant::Legacy | Variant::Nft => Self::of(family, variant),
            Variant::Auto => Self::detect(family),
        }
    }

    /// Every variant that is installed.
    pub fn installed(family: IpFamily) -> Result<Vec<Self>, Error> {
        let both = [Variant::Legacy, Variant::Nft].map(|variant| Self::named(family, variant));
        let both: Vec<_> = both.into_iter().filter_map(Result::ok).collect();
        if both.is_empty() {
            return Ok(vec![Self::named(family, Variant::Auto)?]);
        }
        Ok(both)
    }

    /// Those of the same version of IP that speak to the kernel's other interface, where they are installed.
    pub fn others(&self) -> Result<Vec<Self>, Error> {
        let other = if self.is_nft()? {
            Variant::Legacy
        } else {
            Variant::Nft
        };
        let mut installed = Self::installed(self.family)?;
        installed.retain(|programs| programs.variant == other);
        Ok(installed)
    }

    fn is_nft(&self) -> Result<bool, Error> {
        match self.variant {
            Variant::Legacy => Ok(false),
            Variant::Nft => Ok(true),
            Variant::Auto => {
                let version = self.run(&self.command, "its version", &["--version"], "")?;
                Ok(version.contains("nf_tables"))
            }
        }
    }

    fn detect(family: IpFamily) -> Result<Self, Error> {
        let plain = Self::named(family, Variant::Auto);
        let (legacy, nft) = (
            Self::named(family, Variant::Legacy),
            Self::named(family, Variant::Nft),
        );
        let (Ok(legacy), Ok(nft)) = (legacy, nft) else {
            return plain;
        };
        // A variant that does not work here holds nothing.
        let nft_rules = nft.save_all().unwrap_or_default();
        if nft_rules.has_hint {
            return Ok(nft);
        }
        let legacy_rules = legacy.save_all().unwrap_or_default();
        if legacy_rules.has_hint || legacy_rules.size > nft_rules.size {
            Ok(legacy)
        } else if nft_rules.size > legacy_rules.size {
            Ok(nft)
        } else {
            plain.or(Ok(nft))
        }
    }

    /// A variant; where only one is installed, it has the plain name.
    fn of(family: IpFamily, variant: Variant) -> Result<Self, Error> {
        let missing = match Self::named(family, variant) {
            Ok(programs) => return Ok(programs),
            Err(missing) => missing,
        };
        let Ok(plain) = Self::named(family, Variant::Auto) else {
            return Err(missing);
        };
        if plain.is_nft()? == (variant == Variant::Nft) {
            Ok(plain)
        } else {
            Err(missing)
        }
    }

    fn named(family: IpFamily, variant: Variant) -> Result<Self, Error> {
        let base = match family {
            IpFamily::V4 => "iptables",
            IpFamily::V6 => "ip6tables",
        };
        let name = match variant {
            Variant::Auto => base.to_owned(),
            Variant::Legacy => format!("{base}-legacy"),
            Variant::Nft => format!("{base}-nft"),
        };
        Ok(Self {
            family,
            variant,
            namespace: Namespace::current()
                .map_err(|source| failed(Path::new(&name), "its namespace", source))?,
            command: program(&name)?,
            save: program(&format!("{name}-save"))?,
            restore: program(&format!("{name}-restore"))?,
        })
    }

    /// Which variant was taken; [`Variant::Auto`] where it has the plain name.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// All tables that exist. x_tables makes a table for whoever asks for it by name, so none is named.
    pub fn save_all(&self) -> Result<Ruleset, Error> {
        Ok(Ruleset::parse(&self.save_text()?))
    }

    /// The same as the program prints it.
    pub fn save_text(&self) -> Result<String, Error> {
        self.run(&self.save, "all tables", &[], "")
    }

    /// These tables, which exist from then on.
    pub fn save(&self, tables: &[Table]) -> Result<Ruleset, Error> {
        let mut saved = String::new();
        for table in tables {
            saved += &self.run(&self.save, &table.to_string(), &["-t", table.name()], "")?;
        }
        Ok(Ruleset::parse(&saved))
    }

    /// Makes a change, all of it or nothing for each table.
    pub fn restore(&self, input: &str) -> Result<(), Error> {
        let arguments = ["--noflush", "--counters", "-w", LOCK_SECONDS];
        self.run(&self.restore, "a change of rules", &arguments, input)?;
        Ok(())
    }

    /// The rules of one chain; none when it does not exist.
    pub fn chain(&self, table: Table, chain: &str) -> Option<Vec<Rule>> {
        let arguments = ["-w", LOCK_SECONDS, "-t", table.name(), "-S", chain];
        let listed = self.run(&self.command, chain, &arguments, "");
        listed.ok().map(|listed| parse_chain(&listed))
    }

    /// Whether conntrack lets packets outside of a connection's window through. Without conntrack there is no answer,
    /// and nothing that it could call invalid.
    #[must_use]
    pub fn is_liberal(&self) -> bool {
        let read = || sysctl::read("net/netfilter/nf_conntrack_tcp_be_liberal");
        let value = self.in_namespace(read).ok().and_then(Result::ok);
        value.as_deref() == Some("1")
    }

    /// Threads differ in their namespace: whoever calls may be another one than opened the datapath.
    fn in_namespace<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, netlink::Error> {
        if Namespace::current()? == self.namespace {
            Ok(work())
        } else {
            self.namespace.run(work)
        }
    }

    fn run(&self, program: &Path, object: &str, arguments: &[&str], input: &str) -> Result<String, Error> {
        let object = format!("{object} (IP{:?})", self.family).to_lowercase();
        let mut command = Command::new(program);
        command
            .args(arguments)
            // What programs say is read by people, and by this proxy.
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.in_namespace(|| command.spawn());
        let child = child.map_err(|source| failed(program, &object, source))?;
        let output = child.and_then(|child| finish(child, input));
        let output = output.map_err(|source| failed(program, &object, source))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let text = format!("{}: {}", output.status, text.trim());
            return Err(failed(program, &object, io::Error::other(text)));
        }
        String::from_utf8(output.stdout).map_err(|source| failed(program, &object, source))
    }
}

/// Input and output pass at once, or a program that talks while it reads would wait for ever.
fn finish(mut child: Child, input: &str) -> io::Result<Output> {
    let pipe = child.stdin.take();
    thread::scope(|scope| {
        scope.spawn(move || {
            // A program that stops reading has failed, and says why itself.
            pipe.map(|mut pipe| pipe.write_all(input.as_bytes()))
        });
        child.wait_with_output()
    })
}

fn failed(
    program: &Path,
    object: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    let name = program.file_name().unwrap_or(program.as_os_str());
    Error::Program {
        program: name.to_string_lossy().into_owned(),
        object: object.to_owned(),
        source: io::Error::other(source),
    }
}

fn program(name: &str) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(DIRECTORIES.map(PathBuf::from));
    let mut found = directories
        .map(|directory| directory.join(name))
        .filter(|path| path.is_file());
    let missing = || {
        failed(
            Path::new(name),
            "the search path",
            io::Error::from(io::ErrorKind::NotFound),
        )
    };
    found.next().ok_or_else(missing)
}
