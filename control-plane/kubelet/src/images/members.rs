//! Members of a tar archive, one after the other, with bounded memory whatever the archive says. Names and links that
//! are too long for a header come from GNU and PAX extensions (POSIX.1-2024 `pax`, "pax Header Block").

use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use super::ImageError;

/// Most bytes of one extension: names and attributes, nothing else.
const EXTENSION_LIMIT: u64 = 1 << 20;
/// Most bytes of a path or a link: the kernel takes no longer ones (`PATH_MAX`).
const NAME_LIMIT: usize = 4096;
/// PAX attributes that carry a file's extended attributes.
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// What an archive says of one file.
#[derive(Debug)]
pub struct Member {
    /// Path below the archive's root; empty = the root itself.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryType,
    /// Target of a link, as it stands in the archive.
    pub link: Vec<u8>,
    /// Permissions, with set-user-id and its like.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change, in seconds since 1970.
    pub mtime: u64,
    /// Bytes of its contents.
    pub size_bytes: u64,
    /// Where its contents begin, in bytes from the archive's beginning.
    pub position: u64,
    /// Extended attributes by name.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// Extensions that are for the next member.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<u64>,
    size_bytes: Option<u64>,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// Calls `visit` for each member. What `visit` does not read of a member is skipped.
pub fn each_member<R: Read>(
    archive: &mut tar::Archive<R>,
    mut visit: impl FnMut(&Member, &mut dyn Read) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let mut extensions = Extensions::default();
    for entry in archive.entries().map_err(ImageError::Archive)?.raw(true) {
        let mut entry = entry.map_err(ImageError::Archive)?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::GNULongName => extensions.path = Some(c_string(extension(&mut entry)?)),
            EntryType::GNULongLink => extensions.link = Some(c_string(extension(&mut entry)?)),
            EntryType::XHeader => extensions.read_pax(&extension(&mut entry)?)?,
            EntryType::XGlobalHeader => drop(extension(&mut entry)?),
            _ => {
                let member = member(&entry, std::mem::take(&mut extensions))?;
                visit(&member, &mut entry)?;
            }
        }
    }
    Ok(())
}

fn extension<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let read = entry.take(EXTENSION_LIMIT + 1).read_to_end(&mut bytes);
    if read.map_err(ImageError::Archive)? as u64 > EXTENSION_LIMIT {
        return Err(ImageError::Malformed(format!(
            "a name or attribute of more than {EXTENSION_LIMIT} bytes"
        )));
    }
    Ok(bytes)
}

fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}

impl Extensions {
    fn read_pax(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        for pair in tar::PaxExtensions::new(bytes) {
            let pair = pair.map_err(ImageError::Archive)?;
            let (key, value) = (pair.key_bytes(), pair.value_bytes());
            let key = String::from_utf8_lossy(key);
            // Times may have a fraction.
            let number = || {
                let text = str::from_utf8(value).ok()?;
                text.split('.').next()?.parse::<u64>().ok()
            };
            let id = || number().and_then(|number| u32::try_from(number).ok());
            match key.as_ref() {
                "path" => self.path = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "uid" => self.uid = id(),
                "gid" => self.gid = id(),
                "mtime" => self.mtime = number(),
                "size" => self.size_bytes = number(),
                other if other.starts_with("GNU.sparse") => {
                    return Err(ImageError::Malformed("a sparse file".to_owned()));
                }
                other => {
                    let name = other.strip_prefix(XATTR_PREFIX).map(str::to_owned);
                    self.xattrs.extend(name.map(|name| (name, value.to_vec())));
                }
            }
        }
        Ok(())
    }
}

fn member<R: Read>(entry: &tar::Entry<'_, R>, extensions: Extensions) -> Result<Member, ImageError> {
    let header = entry.header();
    let path = extensions
        .path
        .unwrap_or_else(|| header.path_bytes().into_owned());
    let link = header.link_name_bytes().map(std::borrow::Cow::into_owned);
    let size_bytes = header.entry_size().map_err(ImageError::Archive)?;
    if extensions.size_bytes.is_some_and(|size| size != size_bytes) {
        return Err(ImageError::Malformed(format!(
            "{}: two sizes for one file",
            String::from_utf8_lossy(&path)
        )));
    }
    let link = extensions.link.or(link).unwrap_or_default();
    if path.len() > NAME_LIMIT || link.len() > NAME_LIMIT {
        return Err(ImageError::Malformed(format!(
            "a name of more than {NAME_LIMIT} bytes"
        )));
    }
    let id = |number: io::Result<u64>| number.ok().and_then(|number| u32::try_from(number).ok());
    Ok(Member {
        path: relative(&path)?,
        kind: header.entry_type(),
        link,
        mode: header.mode().map_err(ImageError::Archive)? & 0o7777,
        uid: extensions.uid.or(id(header.uid())).unwrap_or(0),
        gid: extensions.gid.or(id(header.gid())).unwrap_or(0),
        mtime: extensions.mtime.or(header.mtime().ok()).unwrap_or(0),
        size_bytes,
        position: entry.raw_file_position(),
        xattrs: extensions.xattrs,
    })
}

/// A path of an archive, below the archive's root. One that leads out of it is refused.
pub fn relative(path: &[u8]) -> Result<PathBuf, ImageError> {
    use std::os::unix::ffi::OsStrExt as _;
    let given = Path::new(std::ffi::OsStr::from_bytes(path));
    let refused = |reason| ImageError::Refused {
        path: given.to_owned(),
        reason,
    };
    if path.contains(&0) {
        return Err(refused("its name has a zero byte"));
    }
    let mut clean = PathBuf::new();
    for part in given.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(refused("it leads out of the archive"));
            }
        }
    }
    Ok(clean)
}
