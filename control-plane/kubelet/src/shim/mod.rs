//! `causeway-shim`: one process per container, which makes it, owns its output and outlives the kubelet.
//!
//! A process of its own because libcontainer forks (a threaded process must not), because the container has to be
//! born in the node's cgroup v2 subtree (elsewhere the cgroup programs of the data plane never see it), and because
//! somebody has to read its output and its exit code while the kubelet restarts. The root file system is mounted in
//! the shim's own mount namespace, so that no mount can outlive shim and container.
//!
//! Usage: `causeway-shim DIRECTORY`, where the directory holds what [`state`] describes. It prints one [`Report`] on
//! standard output and ends when the container ends.

pub mod log;
pub mod state;

use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};

use crate::cgroup::Cgroup;
use crate::disk::{self, DiskError, OnPath};
use crate::process::ProcessIdentity;
use log::{Lines, LogFile, Stream};
use state::{ContainerDir, ContainerRequest, Exit, Report, Started};

/// How long the kernel may take to end what a container left behind.
const LEFTOVERS_DEADLINE: Duration = Duration::from_secs(10);

/// Why a container could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// A file, directory, mount or cgroup.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Files that the kubelet should have written are absent.
    #[error("no container request in {}", .0.display())]
    NoRequest(PathBuf),
    /// libcontainer failed.
    #[error("{operation} container: {}", chain(.source))]
    Runtime {
        /// What it was asked for.
        operation: &'static str,
        /// Why it failed.
        source: Box<LibcontainerError>,
    },
    /// A system call on no particular object.
    #[error("{operation}")]
    System {
        /// Which.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: nix::Error,
    },
}

/// The program.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: causeway-shim DIRECTORY (started by the kubelet, one per container)");
        return ExitCode::from(2);
    };
    let directory = ContainerDir(PathBuf::from(directory));
    // A session of its own: signals to the kubelet's terminal or process group are not for the container. It fails
    // only for a group's leader, which has been given a group of its own already.
    let _ = setsid();
    trace_to(&directory.shim_log());
    match start(&directory) {
        Ok(running) => match running.follow(&directory) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(error = %error_text(&error), "shim failed");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            let text = error_text(&error);
            tracing::error!(error = text, "container not started");
            report(&Report::Failed(text));
            ExitCode::FAILURE
        }
    }
}

/// A container that was started.
struct Running {
    request: ContainerRequest,
    cgroup: Cgroup,
    /// The cgroup may be that of the container before this one.
    oom_kills_before: u64,
    init: Pid,
    stdout: PipeReader,
    stderr: PipeReader,
    log: LogFile,
}

fn start(directory: &ContainerDir) -> Result<Running, ShimError> {
    if let Some(own) = ProcessIdentity::own() {
        disk::write_json(&directory.shim(), &own)?;
    }
    let request: ContainerRequest = disk::read_json(&directory.request())?
        .ok_or_else(|| ShimError::NoRequest(directory.path().to_owned()))?;
    if let Some(parent) = request.log.parent() {
        disk::make_dir(parent)?;
    }
    let log = LogFile::open(&request.log).on("open log", &request.log)?;
    mount_rootfs(directory, &request.image_rootfs)?;
    // Whatever the container leaves behind when its process 1 dies comes to us, not to the machine's init.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)).map_err(|errno| {
        ShimError::System {
            operation: "become a subreaper",
            source: errno_of(errno),
        }
    })?;

    let home = own_cgroup(&request.cgroup)?;
    let cgroup = Cgroup::at(&request.cgroup)?;
    cgroup.enter()?;
    let oom_kills_before = cgroup.oom_kills();
    let pipes = io::pipe().and_then(|stdout| Ok((stdout, io::pipe()?)));
    let ((stdout, stdout_writer), (stderr, stderr_writer)) = pipes.on("create pipe for", directory.path())?;
    let stdin = File::open("/dev/null").on("open", Path::new("/dev/null"))?;
    disk::make_dir(&directory.runtime())?;
    let runtime_failure = |operation| {
        move |source| ShimError::Runtime {
            operation,
            source: Box::new(source),
        }
    };
    let mut container = ContainerBuilder::new(request.id.clone(), SyscallType::default())
        .with_root_path(directory.runtime())
        .map_err(runtime_failure("prepare"))?
        .with_stdin(stdin)
        .with_stdout(stdout_writer)
        .with_stderr(stderr_writer)
        .as_init(directory.path())
        .with_systemd(false)
        .build()
        .map_err(runtime_failure("create"))?;
    // The container was born in its cgroup; the shim goes back, so that killing the cgroup kills the container and
    // the shim lives to tell it.
    home.enter()?;
    container.start().map_err(runtime_failure("start"))?;

    let init = container.pid().map_or(0, nix_pid);
    let started = Started {
        // A container may have ended already; then its identity matches no process, which is what it should do.
        init: ProcessIdentity::of(init).unwrap_or(ProcessIdentity {
            pid: init,
            start_time: 0,
        }),
        started_at: Timestamp::now(),
    };
    disk::write_json(&directory.started(), &started)?;
    ignore_ends()?;
    if request.host_pid {
        end_with(started.init, cgroup.clone());
    }
    report(&Report::Started(started));
    Ok(Running {
        request,
        cgroup,
        oom_kills_before,
        init: Pid::from_raw(init),
        stdout,
        stderr,
        log,
    })
}

impl Running {
    /// Copies the output until it ends, waits for the exit code and writes it down. What is left of the container (its
    /// cgroups, its directory) is the kubelet's to remove: here it would hold back the news of the end.
    fn follow(mut self, directory: &ContainerDir) -> Result<(), ShimError> {
        self.copy_output().on("write", &self.request.log)?;
        let (code, signal) = wait_for(self.init)?;
        let exit = Exit {
            code,
            signal,
            oom_killed: self.cgroup.oom_kills() > self.oom_kills_before,
            finished_at: Timestamp::now(),
        };
        disk::write_json(&directory.exit(), &exit)?;
        Ok(())
    }

    fn copy_output(&mut self) -> io::Result<()> {
        let mut stdout = Source {
            pipe: &self.stdout,
            lines: Lines::of(Stream::Stdout),
            open: true,
        };
        let mut stderr = Source {
            pipe: &self.stderr,
            lines: Lines::of(Stream::Stderr),
            open: true,
        };
        let mut buffer = vec![0; 64 << 10];
        while stdout.open || stderr.open {
            let open: Vec<&mut Source> = [&mut stdout, &mut stderr]
                .into_iter()
                .filter(|s| s.open)
                .collect();
            let mut waits: Vec<PollFd> = open
                .iter()
                .map(|source| PollFd::new(source.pipe.as_fd(), PollFlags::POLLIN))
                .collect();
            match poll(&mut waits, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => continue,
                outcome => outcome?,
            };
            let ready: Vec<bool> = waits.iter().map(|wait| wait.any().unwrap_or(true)).collect();
            for (source, _) in open.into_iter().zip(ready).filter(|(_, ready)| *ready) {
                let text = source.read(&mut buffer)?;
                if let Err(error) = self.log.append(&text) {
                    // A full disk must not block the container: its output is read on and lost.
                    tracing::error!(error = %error, "log line lost");
                }
            }
        }
        Ok(())
    }
}

/// One stream of the container.
struct Source<'a> {
    pipe: &'a PipeReader,
    lines: Lines,
    open: bool,
}

impl Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Vec<u8>> {
        let length = self.pipe.read(buffer)?;
        self.open = length > 0;
        Ok(match buffer.get(..length) {
            Some(bytes) if length > 0 => self.lines.push(bytes, Timestamp::now()),
            _ => self.lines.end(Timestamp::now()),
        })
    }
}

/// Waits for process 1 of the container, and reaps what else ends meanwhile. Its exit code, and the signal if one
/// ended it.
fn wait_for(init: Pid) -> Result<(i32, Option<i32>), ShimError> {
    loop {
        match waitpid(Pid::from_raw(-1), None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == init => return Ok((code, None)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == init => {
                return Ok((128 + signal as i32, Some(signal as i32)));
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(source) => {
                return Err(ShimError::System {
                    operation: "wait for the container",
                    source,
                });
            }
        }
    }
}

/// The shim's view: the image below, the container's own layer above. Where overlayfs cannot be used (the state
/// directory itself on overlayfs, say) the image is copied.
fn mount_rootfs(directory: &ContainerDir, image: &Path) -> Result<(), ShimError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|source| ShimError::System {
        operation: "make a mount namespace",
        source,
    })?;
    let root = Path::new("/");
    mount(
        None::<&str>,
        root,
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )
    .on("make mounts private below", root)?;
    let (rootfs, upper, work) = (directory.rootfs(), directory.upper(), directory.work());
    for path in [&rootfs, &upper, &work] {
        disk::make_dir(path)?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        image.display(),
        upper.display(),
        work.display()
    );
    let overlay = mount(
        Some("overlay"),
        &rootfs,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    );
    if let Err(error) = overlay {
        tracing::warn!(%error, "no overlayfs, copying the image");
        copy_tree(image, &rootfs)?;
        // libcontainer needs a mount point to pivot into.
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(&rootfs), &rootfs, None::<&str>, bind, None::<&str>).on("bind", &rootfs)?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), DiskError> {
    disk::make_dir(to)?;
    for entry in fs::read_dir(from).on("read", from)? {
        let entry = entry.on("read", from)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().on("read", &source)?;
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            let link = fs::read_link(&source).on("read", &source)?;
            std::os::unix::fs::symlink(link, &target).on("link", &target)?;
        } else {
            fs::copy(&source, &target).on("copy", &source)?;
        }
    }
    Ok(())
}

/// The cgroup that this process stands in, found beside the container's: both are below one cgroup v2 mount.
fn own_cgroup(container: &Path) -> Result<Cgroup, ShimError> {
    let file = Path::new("/proc/self/cgroup");
    let text = fs::read_to_string(file).on("read", file)?;
    let relative = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    let oci_path = Cgroup::at(container)?.oci_path();
    let depth = oci_path.components().count().saturating_sub(1);
    let mount = container.ancestors().nth(depth).unwrap_or(container);
    Ok(Cgroup::at(&mount.join(relative))?)
}

/// In a PID namespace of its own a container ends with its process 1. In the node's nothing ends what that leaves behind,
/// which would also hold the output open.
fn end_with(init: ProcessIdentity, cgroup: Cgroup) {
    std::thread::spawn(move || {
        init.wait();
        cgroup.kill_all(LEFTOVERS_DEADLINE);
    });
}

/// From now on only the container's end ends the shim. Not earlier: the container would inherit the mask.
fn ignore_ends() -> Result<(), ShimError> {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
        .thread_block()
        .map_err(|source| ShimError::System {
            operation: "block signals",
            source,
        })
}

/// Tells the kubelet; one that has gone meanwhile reads the files instead.
fn report(report: &Report) {
    if let Ok(line) = serde_json::to_string(report) {
        let mut stdout = io::stdout();
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}

/// Messages of shim and runtime go to a file of their own, never into the container's log.
fn trace_to(path: &Path) {
    if let Ok(file) = File::options().create(true).append(true).open(path) {
        tracing_subscriber::fmt()
            .with_writer(file)
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .init();
    }
}

fn nix_pid(pid: impl std::fmt::Display) -> i32 {
    // libcontainer's `Pid` is that of another release of `nix`.
    pid.to_string().parse().unwrap_or_default()
}

fn errno_of(errno: rustix::io::Errno) -> nix::Error {
    nix::Error::from_raw(errno.raw_os_error())
}

fn error_text(error: &dyn std::error::Error) -> String {
    chain(error)
}

/// An error and its causes on one line, without repeating a cause that the text above it already holds.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
