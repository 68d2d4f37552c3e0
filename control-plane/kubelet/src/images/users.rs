//! Who a container runs as, from its image's `/etc/passwd` and `/etc/group` (passwd(5), group(5)).

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::layer::open_file;

/// Most bytes of either file that are read.
const FILE_LIMIT: u64 = 1 << 20;

/// A user of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Main group.
    pub gid: u32,
    /// Groups that name the user.
    pub groups: Vec<u32>,
}

/// The accounts of an image.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Of an image; empty where it has none.
    pub fn of(rootfs: &Path) -> Self {
        let read = |path: &str| {
            let file = open_file(rootfs, Path::new(path)).ok().filter(is_regular)?;
            let mut bytes = Vec::new();
            file.take(FILE_LIMIT).read_to_end(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        Self {
            passwd: read("etc/passwd").unwrap_or_default(),
            group: read("etc/group").unwrap_or_default(),
        }
    }

    /// `user[:group]`, each a name or a number; empty = root. The error is the name that is not known. A number is never
    /// read as a name, as with docker and containerd: an image could call its root `1000`.
    pub fn find(&self, text: &str) -> Result<User, String> {
        let (name, group) = text.split_once(':').unwrap_or((text, ""));
        let name = if name.is_empty() { "0" } else { name };
        let entries = self.passwd.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [login, _, uid, gid, ..] = *fields.as_slice() else {
                return None;
            };
            Some((login, uid.parse::<u32>().ok()?, gid.parse::<u32>().ok()?))
        });
        let number = name.parse::<u32>().ok();
        let mut entries =
            entries.filter(|(login, uid, _)| number.map_or(*login == name, |number| *uid == number));
        let (login, uid, own_gid) = match (entries.next(), number) {
            (Some(entry), _) => entry,
            (None, Some(uid)) => ("", uid, 0),
            (None, None) if name == "root" => ("root", 0, 0),
            (None, None) => return Err(name.to_owned()),
        };
        let gid = if group.is_empty() {
            own_gid
        } else {
            self.group(group)?
        };
        Ok(User {
            uid,
            gid,
            groups: self.groups_of(login),
        })
    }

    fn group(&self, name: &str) -> Result<u32, String> {
        let mut groups = self.groups().filter(|(group, ..)| *group == name);
        let number = name.parse().ok();
        let found = number.or_else(|| groups.next().map(|(_, gid, _)| gid));
        found.ok_or_else(|| name.to_owned())
    }

    fn groups_of(&self, login: &str) -> Vec<u32> {
        let named = self
            .groups()
            .filter(|(_, _, members)| !login.is_empty() && members.split(',').any(|member| member == login));
        named.map(|(_, gid, _)| gid).collect()
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, gid) = (fields.next()?, fields.nth(1)?);
            Some((name, gid.parse().ok()?, fields.next().unwrap_or_default()))
        })
    }
}

fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        let accounts = Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n1000:x:0:0::/:/x\nweb:x:101:102::/:/x\nbroken\n"
                .to_owned(),
            group: "root:x:0:\n6000:x:0:\nweb:x:102:\nadm:x:4:root,web\nlog:x:7:web\n".to_owned(),
        };
        let user = |uid, gid, groups: &[u32]| {
            Ok(User {
                uid,
                gid,
                groups: groups.to_vec(),
            })
        };
        for (text, expected) in [
            ("", user(0, 0, &[4])),
            ("web", user(101, 102, &[4, 7])),
            ("101", user(101, 102, &[4, 7])),
            ("web:adm", user(101, 4, &[4, 7])),
            ("web:9", user(101, 9, &[4, 7])),
            ("5000", user(5000, 0, &[])),
            ("5000:6000", user(5000, 6000, &[])),
            ("1000", user(1000, 0, &[])),
            ("nobody", Err("nobody".to_owned())),
            ("web:nogroup", Err("nogroup".to_owned())),
        ] {
            assert_eq!(accounts.find(text), expected, "{text}");
        }
        assert_eq!(Accounts::default().find("root"), user(0, 0, &[]));
    }
}
