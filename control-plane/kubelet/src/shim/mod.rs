//! `causeway-shim`: one process per container, which makes it, owns its output and outlives the kubelet.
//!
//! A process of its own because libcontainer forks (a threaded process must not), because the container has to be
//! born in the node's cgroup v2 subtree (elsewhere the cgroup programs of the data plane never see it), and because
//! somebody has to read its output and its exit code while the kubelet restarts. The root file system is mounted in
//! the shim's own mount namespace, so that no mount can outlive shim and container.
//!
//! Usage: `causeway-shim DIRECTORY`, where the directory holds what [`state`] describes. It prints one [`Report`] on
//! standard output and ends when the container ends. `causeway-shim exec …` is [`exec`].

pub mod attach;
mod exec;
pub mod log;
pub mod state;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};
use rustix::io::ioctl_fionbio;

use crate::cgroup::Cgroup;
use crate::disk::{self, DiskError, OnPath};
use crate::pod::sub_path::SubPath;
use crate::process::ProcessIdentity;
use crate::terminal::{receive, shortened};
use attach::{Audience, Keyboard};
use log::{Lines, LogFile, Stream};
use state::{ContainerDir, ContainerRequest, ExecDir, Exit, Report, Started, Stdin};

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
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match arguments.as_slice() {
        [directory] => keep(&ContainerDir(directory.clone())),
        [exec, directory, job] if exec.as_os_str() == "exec" => {
            exec::run(&ContainerDir(directory.clone()), &ExecDir(job.clone()))
        }
        _ => {
            eprintln!("usage: causeway-shim DIRECTORY (started by the kubelet, one per container)");
            eprintln!("       causeway-shim exec DIRECTORY JOB (one per command that is run in it)");
            ExitCode::from(2)
        }
    }
}

/// Makes a container and keeps it to its end.
fn keep(directory: &ContainerDir) -> ExitCode {
    // A session of its own: signals to the kubelet's terminal or process group are not for the container. It fails
    // only for a group's leader, which has been given a group of its own already.
    let _ = setsid();
    trace_to(&directory.shim_log());
    match start(directory) {
        Ok(running) => match running.follow(directory) {
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
    cgroup: Cgroup,
    /// The cgroup may be that of the container before this one.
    oom_kills_before: u64,
    init: Pid,
    outputs: Vec<(Stream, File)>,
    audience: Audience,
    log: LogFile,
}

fn start(directory: &ContainerDir) -> Result<Running, ShimError> {
    if let Some(own) = ProcessIdentity::own() {
        disk::write_json_for_now(&directory.shim(), &own)?;
    }
    let request: ContainerRequest = disk::read_json(&directory.request())?
        .ok_or_else(|| ShimError::NoRequest(directory.path().to_owned()))?;
    if let Some(parent) = request.log.parent() {
        disk::make_dir(parent)?;
    }
    let log = LogFile::open(&request.log).on("open log", &request.log)?;
    mount_rootfs(directory, &request.image_rootfs)?;
    for (index, sub_path) in request.sub_paths.iter().enumerate() {
        mount_sub_path(sub_path, &directory.sub_path(index))?;
    }
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
    disk::make_dir(&directory.runtime())?;
    let builder = ContainerBuilder::new(request.id.clone(), SyscallType::default())
        .with_root_path(directory.runtime())
        .map_err(runtime_failure("prepare"))?;
    let (mut container, outputs, audience) = match request.terminal {
        true => create_on_terminal(directory, request.stdin, builder)?,
        false => create_on_pipes(directory, request.stdin, builder)?,
    };
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
    disk::write_json_for_now(&directory.started(), &started)?;
    ignore_ends()?;
    if request.shares_pids {
        end_with(started.init, cgroup.clone());
    }
    report(&Report::Started(started));
    Ok(Running {
        cgroup,
        oom_kills_before,
        init: Pid::from_raw(init),
        outputs,
        audience,
        log,
    })
}

/// A container that waits for its start, its outputs, and who is attached to it.
type Created = (Container, Vec<(Stream, File)>, Audience);

fn create_on_terminal(
    directory: &ContainerDir,
    stdin: Stdin,
    builder: ContainerBuilder,
) -> Result<Created, ShimError> {
    let path = directory.console();
    let bound = shortened(&path).and_then(|(_directory, short)| UnixListener::bind(short));
    let console = bound.on("listen on", &path)?;
    let container = create(directory, builder.with_console_socket(Some(&path)))?;
    let terminal = terminal_from(&console).on("receive a terminal at", &path)?;
    let copy = || terminal.try_clone().on("copy the terminal of", directory.path());
    let outputs = vec![(Stream::Stdout, copy()?)];
    let keyboard = match stdin {
        Stdin::Closed => None,
        Stdin::Once | Stdin::Kept => Some(Keyboard {
            to: copy()?,
            once: false,
        }),
    };
    let audience = audience(directory, keyboard, Some(terminal))?;
    Ok((container, outputs, audience))
}

fn create_on_pipes(
    directory: &ContainerDir,
    stdin: Stdin,
    builder: ContainerBuilder,
) -> Result<Created, ShimError> {
    let pipe = || {
        let pipe = io::pipe().map(|(reader, writer)| (OwnedFd::from(reader), OwnedFd::from(writer)));
        pipe.on("create pipe for", directory.path())
    };
    let ((stdout, stdout_writer), (stderr, stderr_writer)) = (pipe()?, pipe()?);
    let (stdin_reader, keyboard) = match stdin {
        Stdin::Closed => (null()?, None),
        Stdin::Once | Stdin::Kept => {
            let (reader, writer) = pipe()?;
            ioctl_fionbio(&writer, true).on("prepare pipe for", directory.path())?;
            let keyboard = Keyboard {
                to: File::from(writer),
                once: stdin == Stdin::Once,
            };
            (reader, Some(keyboard))
        }
    };
    let builder = builder
        .with_stdin(stdin_reader)
        .with_stdout(stdout_writer)
        .with_stderr(stderr_writer);
    let container = create(directory, builder)?;
    let outputs = vec![(Stream::Stdout, stdout.into()), (Stream::Stderr, stderr.into())];
    Ok((container, outputs, audience(directory, keyboard, None)?))
}

fn create(directory: &ContainerDir, builder: ContainerBuilder) -> Result<Container, ShimError> {
    let init = builder.as_init(directory.path()).with_systemd(false);
    init.build().map_err(runtime_failure("create"))
}

fn audience(
    directory: &ContainerDir,
    keyboard: Option<Keyboard>,
    terminal: Option<File>,
) -> Result<Audience, ShimError> {
    let path = directory.attach();
    Ok(Audience::listen(&path, keyboard, terminal).on("listen on", &path)?)
}

impl Running {
    /// Copies the output until it ends, waits for the exit code and writes it down. What is left of the container (its
    /// cgroups, its directory) is the kubelet's to remove: here it would hold back the news of the end.
    fn follow(mut self, directory: &ContainerDir) -> Result<(), ShimError> {
        self.copy_output().on("read the output of", directory.path())?;
        let (code, signal) = wait_for(self.init)?;
        let exit = Exit {
            code,
            signal,
            oom_killed: self.cgroup.oom_kills() > self.oom_kills_before,
            finished_at: Timestamp::now(),
        };
        disk::write_json(&directory.exit(), &exit)?;
        self.audience.dismiss();
        Ok(())
    }

    /// Copies output to the log and to whoever is attached, and what they type to the container.
    fn copy_output(&mut self) -> io::Result<()> {
        let outputs = std::mem::take(&mut self.outputs).into_iter();
        let mut sources: Vec<Source> = outputs.map(|(stream, file)| Source::of(stream, file)).collect();
        let mut buffer = vec![0; attach::LONGEST_PAYLOAD];
        while !sources.is_empty() {
            let mut waits: Vec<PollFd> = sources
                .iter()
                .map(|source| PollFd::new(source.file.as_fd(), PollFlags::POLLIN))
                .collect();
            waits.extend(self.audience.waits());
            match poll(&mut waits, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => continue,
                outcome => outcome?,
            };
            let ready: Vec<PollFlags> = waits
                .iter()
                .map(|wait| wait.revents().unwrap_or(PollFlags::POLLIN))
                .collect();
            let (of_sources, of_audience) = ready.split_at_checked(sources.len()).unwrap_or_default();
            for (source, _) in sources
                .iter_mut()
                .zip(of_sources)
                .filter(|(_, ready)| !ready.is_empty())
            {
                let bytes = source.read(&mut buffer)?;
                let lines = source.lines_of(bytes);
                if let Err(error) = self.log.append(&lines) {
                    // A full disk must not block the container: its output is read on and lost.
                    tracing::error!(error = %error, "log line lost");
                }
                self.audience.show(source.stream, bytes);
            }
            self.audience.attend(of_audience);
            sources.retain(|source| source.open);
        }
        Ok(())
    }
}

/// One stream of the container.
struct Source {
    stream: Stream,
    file: File,
    lines: Lines,
    open: bool,
}

impl Source {
    fn of(stream: Stream, file: File) -> Self {
        Self {
            stream,
            file,
            lines: Lines::of(stream),
            open: true,
        }
    }

    /// What can be read, at the end nothing.
    fn read<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let length = match self.file.read(buffer) {
            // No process has the terminal any more.
            Err(error) if error.raw_os_error() == Some(nix::Error::EIO as i32) => 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(&[]),
            read => read?,
        };
        self.open = length > 0;
        Ok(buffer.get(..length).unwrap_or_default())
    }

    fn lines_of(&mut self, bytes: &[u8]) -> Vec<u8> {
        match self.open {
            true => self.lines.push(bytes, Timestamp::now()),
            false => self.lines.end(Timestamp::now()),
        }
    }
}

fn null() -> Result<OwnedFd, ShimError> {
    let path = Path::new("/dev/null");
    let null = File::options()
        .read(true)
        .write(true)
        .open(path)
        .on("open", path)?;
    Ok(null.into())
}

/// The master, which can be read and typed to without blocking.
fn terminal_from(console: &UnixListener) -> io::Result<File> {
    let master = receive(&console.accept()?.0)?;
    ioctl_fionbio(&master, true)?;
    Ok(master.into())
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

/// Mounts what was opened, not what its path leads to a moment later.
fn mount_sub_path(sub_path: &SubPath, target: &Path) -> Result<(), DiskError> {
    let opened = File::from(sub_path.open()?);
    if opened.metadata().on("read", &sub_path.volume)?.is_dir() {
        disk::make_dir(target)?;
    } else {
        disk::make_dir(target.parent().unwrap_or(target))?;
        File::create(target).on("create", target)?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(&source), target, None::<&str>, bind, None::<&str>).on("bind subPath at", target)
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

/// In a PID namespace of its own a container ends with its process 1. In one that it shares nothing ends what that leaves
/// behind, which would also hold the output open.
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

fn runtime_failure(operation: &'static str) -> impl FnOnce(LibcontainerError) -> ShimError {
    move |source| ShimError::Runtime {
        operation,
        source: Box::new(source),
    }
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
