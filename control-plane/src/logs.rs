//! The log files of the cluster's processes, kept from filling the disk.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Size at which a log is set aside as `<name>.log.1`, which replaces the one set aside before.
const LARGEST_BYTES: u64 = 32 << 20;
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Sets aside what has grown large in `dir`, until the shutdown.
pub async fn keep_short(dir: PathBuf, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let dir = dir.clone();
        let looked = tokio::task::spawn_blocking(move || set_large_ones_aside(&dir, LARGEST_BYTES)).await;
        if let Ok(Err(error)) = looked {
            warn!(%error, "logs are not kept short");
        }
    }
}

fn set_large_ones_aside(dir: &Path, largest_bytes: u64) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        if is_log && entry.metadata()?.len() > largest_bytes {
            set_aside(&path)?;
        }
    }
    Ok(())
}

/// The program has the file open for appending, so that it goes on at the start of what is then empty: no program
/// needs to be told. Lines that come between copying and emptying are lost.
fn set_aside(path: &Path) -> io::Result<()> {
    fs::copy(path, path.with_added_extension("1"))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::supervise::open_log;

    #[test]
    fn a_large_log_is_set_aside_under_the_program_that_writes_it() {
        let dir = std::env::temp_dir().join(format!("causeway-logs-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let (large, small) = (dir.join("large.log"), dir.join("small.log"));
        let mut writer = open_log(&large).expect("a log");
        fs::write(&small, "short").expect("a log");
        writer.write_all(b"a long line").expect("written");
        set_large_ones_aside(&dir, 5).expect("set aside");
        writer.write_all(b"next").expect("written");
        let held = |path: &Path| fs::read_to_string(path).ok();
        let found = [
            &large,
            &large.with_added_extension("1"),
            &small,
            &small.with_added_extension("1"),
        ]
        .map(|path| held(path));
        fs::remove_dir_all(&dir).expect("removed");
        let expected = [Some("next"), Some("a long line"), Some("short"), None];
        assert_eq!(found, expected.map(|text| text.map(str::to_owned)));
    }
}
