//! Which cluster is meant where nobody says.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::client::Credentials;
use crate::config::here;

/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Why none is meant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCluster {
    /// `KUBECONFIG` leads nowhere.
    #[error("no file that KUBECONFIG names is there")]
    NotThere,
    /// There is nothing that tells.
    #[error("no kubeconfig: --kubeconfig, KUBECONFIG, ~/.kube/config and {} are looked at", .0.display())]
    None(PathBuf),
}

/// By which a cluster is asked: as it was said, as kubectl would (but of several files of `KUBECONFIG` by the first that
/// is there; kubectl merges them), that of `causeway up`, or the pod's own.
///
/// # Errors
/// When there is none of these.
pub fn usual(named: Option<&Path>, context: Option<&str>) -> Result<Credentials, NoCluster> {
    let bundled = here::kubeconfig();
    let variable = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    let path = match named {
        Some(path) => Some(path.to_owned()),
        None => found(variable("KUBECONFIG"), variable("HOME"), &bundled, Path::exists)?,
    };
    match path {
        Some(path) => Ok(Credentials::Kubeconfig {
            path,
            context: context.map(str::to_owned),
        }),
        None if Path::new(SERVICE_ACCOUNT).exists() => Ok(Credentials::ServiceAccount),
        None => Err(NoCluster::None(bundled)),
    }
}

fn found(
    listed: Option<OsString>,
    home: Option<OsString>,
    bundled: &Path,
    exists: impl Fn(&Path) -> bool,
) -> Result<Option<PathBuf>, NoCluster> {
    if let Some(listed) = listed {
        let path = std::env::split_paths(&listed).find(|path| exists(path));
        return path.map(Some).ok_or(NoCluster::NotThere);
    }
    let own = home.map(|home| Path::new(&home).join(".kube/config"));
    let mut usual = own.into_iter().chain([bundled.to_owned()]);
    Ok(usual.find(|path| exists(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUNDLED: &str = "/srv/cluster/admin.kubeconfig";

    #[test]
    fn the_variable_comes_first_then_the_users_own_then_the_clusters_of_this_machine() {
        let of = |listed: Option<&str>, there: &[&str]| {
            let exists = |path: &Path| there.contains(&path.to_str().expect("text"));
            let found = found(
                listed.map(Into::into),
                Some("/home/ada".into()),
                Path::new(BUNDLED),
                exists,
            );
            found.map(|path| path.map(|path| path.display().to_string()))
        };
        let own = "/home/ada/.kube/config";
        let some = |path: &str| Ok(Some(path.to_owned()));
        assert_eq!(of(Some("/a:/b"), &["/b", own, BUNDLED]), some("/b"));
        assert_eq!(of(Some("/a:/b"), &[own, BUNDLED]), Err(NoCluster::NotThere));
        assert_eq!(of(None, &[own, BUNDLED]), some(own));
        assert_eq!(of(None, &[BUNDLED]), some(BUNDLED));
        assert_eq!(of(None, &[]), Ok(None));
    }
}
