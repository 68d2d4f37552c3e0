//! Kernel settings under `/proc/sys`. Those under `net/` belong to the calling thread's network namespace
//! (`net_ctl_header_lookup`): reach another one with [`crate::Namespace::run`].

use std::fs;
use std::path::Path;

use crate::error::{Error, Operation, Result};

/// Reads a setting by its path below `/proc/sys`, for example `net/ipv4/ip_forward`, without the line feed. Slashes,
/// not dots: device names may hold dots.
///
/// # Errors
/// When there is no such setting.
pub fn read(path: &str) -> Result<String> {
    fs::read_to_string(Path::new("/proc/sys").join(path))
        .map(|text| text.trim_end().to_owned())
        .map_err(Error::of(Operation::ReadSysctl, path))
}

/// Writes a setting.
///
/// # Errors
/// When there is no such setting, or the value is refused.
pub fn write(path: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(path), value).map_err(Error::of(Operation::WriteSysctl, path))
}

/// Writes a setting unless it has that value already. Returns whether it wrote.
///
/// # Errors
/// As [`read`] and [`write()`].
pub fn ensure(path: &str, value: &str) -> Result<bool> {
    if read(path)? == value {
        return Ok(false);
    }
    write(path, value)?;
    Ok(true)
}
