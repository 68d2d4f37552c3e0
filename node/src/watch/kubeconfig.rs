//! Which cluster is meant where nobody says.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use kube::config::{Kubeconfig, KubeconfigError};

use super::client::{ConnectError, Credentials};
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

/// By which a cluster is asked: as it was said, as kubectl would, that of `causeway up`, or the pod's own.
///
/// # Errors
/// When there is none of these.
pub fn usual(named: Option<&Path>, context: Option<&str>) -> Result<Credentials, NoCluster> {
    let bundled = here::kubeconfig();
    let variable = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    let paths = match named {
        Some(path) => vec![path.to_owned()],
        None => found(variable("KUBECONFIG"), variable("HOME"), &bundled, Path::exists)?,
    };
    match paths.as_slice() {
        [] if Path::new(SERVICE_ACCOUNT).exists() => Ok(Credentials::ServiceAccount),
        [] => Err(NoCluster::None(bundled)),
        _ => Ok(Credentials::Kubeconfig {
            paths,
            context: context.map(str::to_owned),
        }),
    }
}

/// What the files say together, as for kubectl: the first that sets a value, or has a name, is right, and files that are
/// not there say nothing (`ClientConfigLoadingRules.Load`, client-go's `clientcmd`). One alone must be there.
///
/// # Errors
/// [`ConnectError::Kubeconfig`] with the file that cannot be read, or is none.
pub(super) fn merged(paths: &[PathBuf]) -> Result<Kubeconfig, ConnectError> {
    let mut merged = Kubeconfig::default();
    for path in paths {
        let error = |source| ConnectError::Kubeconfig {
            path: path.clone(),
            source,
        };
        let mut next = match Kubeconfig::read_from(path) {
            Err(KubeconfigError::ReadConfig(missing, _))
                if missing.kind() == ErrorKind::NotFound && paths.len() > 1 =>
            {
                continue;
            }
            read => read.map_err(error)?,
        };
        // Empty is not set.
        next.current_context = next.current_context.filter(|context| !context.is_empty());
        merged = merged.merge(next).map_err(error)?;
    }
    Ok(merged)
}

fn found(
    listed: Option<OsString>,
    home: Option<OsString>,
    bundled: &Path,
    exists: impl Fn(&Path) -> bool,
) -> Result<Vec<PathBuf>, NoCluster> {
    if let Some(listed) = listed {
        let paths: Vec<PathBuf> = std::env::split_paths(&listed).collect();
        let is_any_there = paths.iter().any(|path| exists(path));
        // Those that are missing now may be there later.
        let paths = paths.into_iter().filter(|path| !path.as_os_str().is_empty());
        return is_any_there.then(|| paths.collect()).ok_or(NoCluster::NotThere);
    }
    let own = home.map(|home| Path::new(&home).join(".kube/config"));
    let mut usual = own.into_iter().chain([bundled.to_owned()]);
    Ok(usual.find(|path| exists(path)).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use ::tests::directory::Directory;

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
            found.map(|paths| std::env::join_paths(paths).expect("no colons"))
        };
        let own = "/home/ada/.kube/config";
        let some = |paths: &str| Ok(OsString::from(paths));
        assert_eq!(of(Some("/a::/b"), &["/b", own, BUNDLED]), some("/a:/b"));
        assert_eq!(of(Some("/a:/b"), &[own, BUNDLED]), Err(NoCluster::NotThere));
        assert_eq!(of(None, &[own, BUNDLED]), some(own));
        assert_eq!(of(None, &[BUNDLED]), some(BUNDLED));
        assert_eq!(of(None, &[]), some(""));
    }

    #[test]
    fn of_several_files_the_first_to_say_something_is_right() {
        let directory = Directory::new("merged");
        let file = |name: &str, text: &str| directory.write(name, text);
        let cluster = |server: &str| {
            format!(
                "{{clusters: [{{name: a, cluster: {{server: 'https://{server}'}}}}], contexts: [{{name: {server}, context: \
                 {{cluster: a, user: ''}}}}]"
            )
        };
        let first = file("first", &format!("{}, current-context: ''}}", cluster("first")));
        let second = file(
            "second",
            &format!("{}, current-context: second}}", cluster("second")),
        );
        let missing = directory.path().join("missing");
        let all = merged(&[missing.clone(), first.clone(), second]).expect("merged");
        let clusters: Vec<_> = all
            .clusters
            .iter()
            .filter_map(|named| named.cluster.as_ref()?.server.as_deref())
            .collect();
        let contexts: Vec<_> = all.contexts.iter().map(|named| named.name.as_str()).collect();
        assert_eq!(
            (clusters, contexts, all.current_context.as_deref()),
            (vec!["https://first"], vec!["first", "second"], Some("second"))
        );
        assert!(
            merged(std::slice::from_ref(&missing)).is_err(),
            "one alone must be there"
        );
        let broken = file("broken", "clusters: [");
        let error = merged(&[first, broken.clone()])
            .expect_err("no kubeconfig")
            .to_string();
        assert_eq!(error, format!("use kubeconfig {}", broken.display()));
    }
}
