//! The commands that people and `kubectl cp` expect in a container, as far as they need them. Each is also a link in
//! the image's `/bin`. There is no shell.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::termios::tcgetattr;

/// What a command did: `Ok(false)` is the exit code 1.
type Outcome = Result<bool, String>;
type Tool = fn(&[String]) -> Outcome;

/// By name.
const TOOLS: [(&str, Tool); 13] = [
    ("cat", cat),
    ("echo", echo),
    ("env", env),
    ("exit", exit),
    ("false", |_| Ok(false)),
    ("hostname", hostname),
    ("id", id),
    ("ls", ls),
    ("pwd", pwd),
    ("tar", tar),
    ("test", test),
    ("true", |_| Ok(true)),
    ("tty", tty),
];

/// The command of a name.
pub fn named(name: &str) -> Option<Tool> {
    TOOLS.iter().find(|(tool, _)| *tool == name).map(|(_, run)| *run)
}

fn on(path: &Path) -> impl Fn(io::Error) -> String {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}

fn written(outcome: io::Result<()>) -> Outcome {
    outcome.map(|()| true).map_err(|error| format!("write: {error}"))
}

/// `cat [FILE…]`, where `-` is standard input
fn cat(files: &[String]) -> Outcome {
    let mut out = io::stdout().lock();
    let mut copy = |from: &mut dyn Read, name: &Path| io::copy(from, &mut out).map_err(on(name));
    if files.is_empty() {
        copy(&mut io::stdin().lock(), Path::new("standard input"))?;
    }
    for path in files.iter().map(Path::new) {
        if path == Path::new("-") {
            copy(&mut io::stdin().lock(), path)?;
            continue;
        }
        copy(&mut File::open(path).map_err(on(path))?, path)?;
    }
    Ok(true)
}

/// `echo [WORD…]`
fn echo(words: &[String]) -> Outcome {
    written(writeln!(io::stdout(), "{}", words.join(" ")))
}

/// `env`
fn env(_: &[String]) -> Outcome {
    let mut out = io::stdout().lock();
    written(std::env::vars().try_for_each(|(name, value)| writeln!(out, "{name}={value}")))
}

/// `exit CODE`
fn exit(words: &[String]) -> Outcome {
    let code = words.first().map_or("0", String::as_str);
    let code: u8 = code
        .parse()
        .map_err(|_| format!("exit: {code:?} is no exit code"))?;
    std::process::exit(code.into())
}

/// `hostname`
fn hostname(_: &[String]) -> Outcome {
    let name = nix::unistd::gethostname().map_err(|error| format!("hostname: {error}"))?;
    written(writeln!(io::stdout(), "{}", name.to_string_lossy()))
}

/// `id`
fn id(_: &[String]) -> Outcome {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let groups = nix::unistd::getgroups().map_err(|error| format!("id: {error}"))?;
    let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
    written(writeln!(
        io::stdout(),
        "uid={uid} gid={gid} groups={}",
        groups.join(",")
    ))
}

/// `ls [-l] [PATH…]`
fn ls(words: &[String]) -> Outcome {
    let (options, paths): (Vec<&String>, Vec<&String>) = words.iter().partition(|word| word.starts_with('-'));
    let long = options.iter().any(|option| option.contains('l'));
    let mut out = io::stdout().lock();
    let here = ".".to_owned();
    let paths = if paths.is_empty() { vec![&here] } else { paths };
    for path in paths.into_iter().map(Path::new) {
        for entry in listed(path)? {
            let name = entry.file_name().unwrap_or(entry.as_os_str()).to_string_lossy();
            if long {
                let about = fs::symlink_metadata(&entry).map_err(on(&entry))?;
                let (mode, owner, group) = (about.mode(), about.uid(), about.gid());
                written(writeln!(
                    out,
                    "{mode:06o} {owner:>5} {group:>5} {:>10} {name}",
                    about.len()
                ))?;
            } else {
                written(writeln!(out, "{name}"))?;
            }
        }
    }
    Ok(true)
}

fn listed(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !fs::metadata(path).map_err(on(path))?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).map_err(on(path))?;
    let entries: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut entries = entries.map_err(on(path))?;
    entries.sort();
    Ok(entries)
}

/// `pwd`
fn pwd(_: &[String]) -> Outcome {
    let path = std::env::current_dir().map_err(|error| format!("pwd: {error}"))?;
    written(writeln!(io::stdout(), "{}", path.display()))
}

/// `test -d|-e|-f PATH`
fn test(words: &[String]) -> Outcome {
    match words {
        [how, path] => {
            let about = fs::metadata(path);
            match how.as_str() {
                "-d" => Ok(about.is_ok_and(|about| about.is_dir())),
                "-f" => Ok(about.is_ok_and(|about| about.is_file())),
                "-e" => Ok(about.is_ok()),
                other => Err(format!("test: {other} is not known")),
            }
        }
        _ => Err("usage: test -d|-e|-f PATH".to_owned()),
    }
}

/// `tty`: whether standard input is a terminal.
fn tty(_: &[String]) -> Outcome {
    let is_terminal = tcgetattr(io::stdin()).is_ok();
    let name = fs::read_link("/proc/self/fd/0").unwrap_or_default();
    let text = if is_terminal {
        name.display().to_string()
    } else {
        "not a tty".to_owned()
    };
    written(writeln!(io::stdout(), "{text}"))?;
    Ok(is_terminal)
}

/// `tar cf - PATH…` and `tar xf - [-C DIRECTORY]` with the options that `kubectl cp` gives.
fn tar(words: &[String]) -> Outcome {
    const USAGE: &str = "usage: tar cf - PATH… | tar xf - [-C DIRECTORY]";
    let (mut create, mut extract) = (false, false);
    let (mut keep_time, mut keep_permissions) = (true, true);
    let mut directory = PathBuf::from(".");
    let mut paths = Vec::new();
    let mut words = words.iter().enumerate();
    while let Some((index, word)) = words.next() {
        match word.as_str() {
            "--no-same-permissions" => keep_permissions = false,
            "--no-same-owner" => {}
            "-C" => directory = words.next().map(|(_, path)| path.into()).ok_or(USAGE)?,
            "-" => {}
            letters
                if letters.starts_with('-') || (index == 0 && letters.chars().all(char::is_alphabetic)) =>
            {
                for letter in letters.trim_start_matches('-').chars() {
                    match letter {
                        'c' => create = true,
                        'x' => extract = true,
                        'm' => keep_time = false,
                        'p' | 'f' => {}
                        other => return Err(format!("tar: option {other} is not known\n{USAGE}")),
                    }
                }
            }
            path => paths.push(PathBuf::from(path)),
        }
    }
    match (create, extract) {
        (true, false) if !paths.is_empty() => pack(&directory, &paths),
        (false, true) if paths.is_empty() => {
            let mut archive = tar::Archive::new(io::stdin().lock());
            archive.set_preserve_mtime(keep_time);
            archive.set_preserve_permissions(keep_permissions);
            archive.unpack(&directory).map_err(on(&directory))?;
            Ok(true)
        }
        _ => Err(USAGE.to_owned()),
    }
}

/// Names in the archive are relative, as every tar makes them.
fn pack(directory: &Path, paths: &[PathBuf]) -> Outcome {
    let mut archive = tar::Builder::new(io::BufWriter::new(io::stdout().lock()));
    archive.follow_symlinks(false);
    for path in paths {
        let (source, name) = (directory.join(path), path.strip_prefix("/").unwrap_or(path));
        let is_directory = fs::symlink_metadata(&source).map_err(on(&source))?.is_dir();
        let added = match is_directory {
            true => archive.append_dir_all(name, &source),
            false => archive.append_path_with_name(&source, name),
        };
        added.map_err(on(&source))?;
    }
    let mut out = archive.into_inner().map_err(|error| format!("tar: {error}"))?;
    written(out.flush())
}
