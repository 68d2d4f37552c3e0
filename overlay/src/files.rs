//! Files that are replaced as a whole, and taken away again with what a crash left of a replacement.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The name under which what shall be at a path is made, before it is put there by rename. Programs that read every
/// file of a directory go by the ending, which is another one.
#[must_use]
pub fn successor(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Replaces a file as a whole, durably; makes its directory.
///
/// # Errors
/// When it cannot be written: the file is as it was.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, None)
}

/// As [`write_file`], for a program that everybody may execute. One that runs already goes on.
///
/// # Errors
/// When it cannot be written: what was there is as it was.
pub fn write_program(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, Some(0o755))
}

fn replace(path: &Path, bytes: &[u8], mode: Option<u32>) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let fresh = successor(path);
    let mut file = fs::File::create(&fresh)?;
    io::Write::write_all(&mut file, bytes)?;
    if let Some(mode) = mode {
        file.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    crate::pods::log::sync_directory(path)
}

/// Removes a file, and what a crash left of its successor. Whether there was either.
///
/// # Errors
/// When one of them stays.
pub fn remove_file(path: &Path) -> Result<bool, Error> {
    let fresh = remove_if_there(&successor(path))?;
    let old = remove_if_there(path)?;
    Ok(fresh || old)
}

/// Removes this one file. Whether it was there.
///
/// # Errors
/// When it stays.
pub fn remove_if_there(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::RemoveFile {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_with_the_successor_that_a_crash_left() {
        let directory = std::env::temp_dir().join(format!("cwt-files-{}", std::process::id()));
        let path = directory.join("a.conflist");
        write_file(&path, b"old").expect("writable");
        write_file(&path, b"new").expect("writable");
        assert_eq!(fs::read(&path).expect("there"), b"new");
        let none = || fs::read_dir(&directory).expect("there").next().is_none();
        for left in [
            vec![&path],
            vec![&successor(&path)],
            vec![&path, &successor(&path)],
        ] {
            for file in &left {
                fs::write(file, "").expect("writable");
            }
            assert!(remove_file(&path).expect("removable"), "{left:?}");
            assert!(none(), "{left:?}");
        }
        assert!(!remove_file(&path).expect("nothing"));
        fs::remove_dir(directory).expect("empty");
    }
}
