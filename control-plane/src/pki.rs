//! The cluster's certificate authority and everything it signs.
//!
//! ECDSA P-256 throughout. The CA is made on the first start and kept; leaf certificates are made anew at a start
//! when they are missing, near their end, or lack a name that is asked for. Names follow Kubernetes: the common
//! name is the user, organizations are groups.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::layout::{KeyPairFiles, StateDir};

/// A leaf is replaced when it would end within this time.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Lifetime of leaf certificates.
const LEAF_DAYS: u64 = 365;
/// Lifetime of the CA.
const CA_DAYS: u64 = 3650;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// TLS server.
    Server,
    /// TLS client.
    Client,
    /// Both.
    ServerAndClient,
}

/// A leaf certificate that is asked for.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Common name: the user.
    pub common_name: String,
    /// Organizations: the groups.
    pub organizations: Vec<String>,
    /// Addresses it serves on.
    pub addresses: Vec<IpAddr>,
    /// Names it serves as.
    pub names: Vec<String>,
    /// Server, client or both.
    pub usage: Usage,
}

impl Leaf {
    /// A client certificate for `user` in `groups`.
    pub fn client(user: &str, groups: &[&str]) -> Self {
        Self {
            common_name: user.to_owned(),
            organizations: groups.iter().map(|&group| group.to_owned()).collect(),
            addresses: Vec::new(),
            names: Vec::new(),
            usage: Usage::Client,
        }
    }
}

/// The authority that signs all of a cluster's certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
}

impl Authority {
    /// Reads the CA of the state directory, or makes it.
    pub fn open(state: &StateDir) -> anyhow::Result<Self> {
        fs::create_dir_all(state.pki())?;
        fs::set_permissions(state.pki(), fs::Permissions::from_mode(0o700))?;
        let files = state.key_pair("ca");
        if files.cert.exists() && files.key.exists() {
            return Self::load(&files).with_context(|| format!("reading the CA {}", files.cert.display()));
        }
        let key = KeyPair::generate()?;
        let params = ca_params();
        let ca_pem = params.self_signed(&key)?.pem();
        write_secret(&files.key, &key.serialize_pem())?;
        write_public(&files.cert, &ca_pem)?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            ca_pem,
        })
    }

    fn load(files: &KeyPairFiles) -> anyhow::Result<Self> {
        let ca_pem = fs::read_to_string(&files.cert)?;
        let key = KeyPair::from_pem(&fs::read_to_string(&files.key)?)?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key)?;
        Ok(Self { issuer, ca_pem })
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Makes the leaf unless `files` hold one that will do.
    pub fn ensure(&self, files: &KeyPairFiles, leaf: &Leaf) -> anyhow::Result<()> {
        if files.key.exists() && will_do(&files.cert, leaf) {
            return Ok(());
        }
        let key = KeyPair::generate()?;
        let certificate = leaf_params(leaf)?.signed_by(&key, &self.issuer)?;
        write_secret(&files.key, &key.serialize_pem())?;
        write_public(&files.cert, &certificate.pem())
    }
}

/// Makes a bare EC key (for ServiceAccount tokens) unless it is there.
pub fn ensure_key(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    write_secret(path, &KeyPair::generate()?.serialize_pem())
}

/// Writes a file that only root may read, whole or not at all.
pub fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    write_with_mode(path, text, 0o600)
}

fn write_public(path: &Path, text: &str) -> anyhow::Result<()> {
    write_with_mode(path, text, 0o644)
}

fn write_with_mode(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let written = write_new(&temporary, text, mode).and_then(|()| fs::rename(&temporary, path));
    written
        .inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
        .with_context(|| format!("writing {}", path.display()))
}

fn write_new(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name("causeway", &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    set_lifetime(&mut params, CA_DAYS);
    params
}

fn leaf_params(leaf: &Leaf) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(&leaf.common_name, &leaf.organizations);
    params.subject_alt_names = leaf.addresses.iter().copied().map(SanType::IpAddress).collect();
    for name in &leaf.names {
        let name = Ia5String::try_from(name.as_str()).map_err(|error| anyhow!("name {name:?}: {error}"))?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match leaf.usage {
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::ServerAndClient => vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
    };
    params.use_authority_key_identifier_extension = true;
    set_lifetime(&mut params, LEAF_DAYS);
    Ok(params)
}

fn distinguished_name(common_name: &str, organizations: &[String]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// Valid from an hour ago, so that a clock that is set back a little breaks nothing.
fn set_lifetime(params: &mut CertificateParams, days: u64) {
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + Duration::from_secs(days * 24 * 3600)).into();
}

fn will_do(cert: &Path, leaf: &Leaf) -> bool {
    let Ok(pem) = fs::read(cert) else { return false };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&pem) else {
        return false;
    };
    let Ok((_, certificate)) = X509Certificate::from_der(&pem.contents) else {
        return false;
    };
    lasts_long_enough(&certificate)
        && has_subject(&certificate, leaf)
        && has_alternative_names(&certificate, leaf)
}

fn lasts_long_enough(certificate: &X509Certificate<'_>) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let end = Duration::from_secs(certificate.validity().not_after.timestamp().unsigned_abs());
    end > now + RENEW_BEFORE
}

fn has_subject(certificate: &X509Certificate<'_>, leaf: &Leaf) -> bool {
    let subject = certificate.subject();
    let common_name = subject.iter_common_name().filter_map(|name| name.as_str().ok());
    let organizations = subject.iter_organization().filter_map(|name| name.as_str().ok());
    common_name.eq([leaf.common_name.as_str()])
        && organizations.eq(leaf.organizations.iter().map(String::as_str))
}

fn has_alternative_names(certificate: &X509Certificate<'_>, leaf: &Leaf) -> bool {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names: Vec<&GeneralName<'_>> = extension
        .iter()
        .flat_map(|san| &san.value.general_names)
        .collect();
    let has_name = |name: &String| {
        names
            .iter()
            .any(|san| matches!(san, GeneralName::DNSName(have) if have == name))
    };
    let has_address = |address: &IpAddr| {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        names
            .iter()
            .any(|san| matches!(san, GeneralName::IPAddress(have) if **have == octets[..]))
    };
    leaf.names.iter().all(has_name) && leaf.addresses.iter().all(has_address)
}
