//! What is tried in a sandbox, and what must come of it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{sched_getaffinity, sched_setaffinity};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::kill;
use nix::unistd::{Pid, getppid, truncate};

/// One thing that is tried.
pub(crate) struct Attempt {
    pub(crate) name: &'static str,
    pub(crate) inside: Inside,
    pub(crate) make: fn(&Place) -> io::Result<()>,
}

/// The files with the memory limits of the groups that this process is in; none where nothing limits it, or that cannot be seen.
fn group_limits() -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files = own.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, name) = match controllers {
            "" => ("", "memory.max"),
            "memory" => ("memory/", "memory.limit_in_bytes"),
            _ => return None,
        };
        Some(PathBuf::from(format!("/sys/fs/cgroup/{root}{}/{name}", path.trim_matches('/'))))
    });
    // `stat` is refused to nobody in a sandbox, so this finds the same files in it as outside.
    files.filter(|file| file.exists()).collect()
}

fn huge_pages_left() -> io::Result<()> {
    let file = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    if file.exists() { fs::read_to_string(file).map(drop) } else { Ok(()) }
}

/// What comes of it in a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inside {
    /// It works as outside.
    Works,
    /// The file is not among those that may be opened.
    NoFile,
    /// The call is not among those that may be made, which is said.
    NoCall,
    /// The process ends.
    Ends,
}

/// What there is to be tried with, made before the sandbox is entered.
pub(crate) struct Place {
    /// The sandbox knows of it.
    pub(crate) image: PathBuf,
    /// Beside the image's directory.
    other: PathBuf,
    socket: PathBuf,
    port: u16,
    _listeners: (TcpListener, UnixListener, UnixListener),
}

impl Place {
    pub(crate) fn new(directory: &Path) -> anyhow::Result<Self> {
        let images = directory.join("images");
        let (image, other, socket) = (images.join("image"), directory.join("other"), directory.join("socket"));
        fs::create_dir(&images)?;
        fs::write(&image, "")?;
        fs::write(&other, "secret")?;
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let port = tcp.local_addr()?.port();
        let listeners = (tcp, UnixListener::bind(&socket)?, UnixListener::bind_addr(&abstract_name()?)?);
        Ok(Self { image, other, socket, port, _listeners: listeners })
    }
}

/// The attempt of this name.
pub(crate) fn find(name: &str) -> Option<&'static Attempt> {
    [REFUSED, HOSTILE, POSSIBLE, &[UNKNOWN]].into_iter().flatten().find(|attempt| attempt.name == name)
}

const fn no_file(name: &'static str, make: fn(&Place) -> io::Result<()>) -> Attempt {
    Attempt { name, inside: Inside::NoFile, make }
}

const fn no_call(name: &'static str, make: fn(&Place) -> io::Result<()>) -> Attempt {
    Attempt { name, inside: Inside::NoCall, make }
}

const fn ends(name: &'static str, make: fn(&Place) -> io::Result<()>) -> Attempt {
    Attempt { name, inside: Inside::Ends, make }
}

const fn works(name: &'static str, make: fn(&Place) -> io::Result<()>) -> Attempt {
    Attempt { name, inside: Inside::Works, make }
}

pub(crate) const REFUSED: &[Attempt] = &[
    no_file("read a file", |place| File::open(&place.other).map(drop)),
    no_file("read a file of the system", |_| File::open("/etc/passwd").map(drop)),
    no_file("read the environment of the parent", |_| File::open(format!("/proc/{}/environ", getppid())).map(drop)),
    no_file("write to a file", |place| File::options().append(true).open(&place.other).map(drop)),
    no_file("make a file", |place| File::create(place.other.with_extension("new")).map(drop)),
    no_file("read an image", |place| File::open(&place.image).map(drop)),
    no_file("list a directory", |_| fs::read_dir("/").map(drop)),
    no_file("remove a file", |place| fs::remove_file(&place.other)),
    no_file("open a device", |_| File::open("/dev/zero").map(drop)),
    no_call("rename a file", |place| fs::rename(&place.other, place.other.with_extension("new"))),
    no_call("make a directory", |place| fs::create_dir(place.other.with_extension("new"))),
    no_call("make a link", |place| fs::hard_link(&place.other, place.other.with_extension("new"))),
    no_call("make a symbolic link", |place| symlink("/", place.other.with_extension("new"))),
    no_call("change who may read a file", |place| fs::set_permissions(&place.other, fs::metadata(&place.other)?.permissions())),
    no_call("truncate a file", |place| Ok(truncate(&place.other, 0)?)),
    no_call("connect over TCP", |place| TcpStream::connect(("127.0.0.1", place.port)).map(drop)),
    no_call("listen on another port", |_| TcpListener::bind("127.0.0.1:0").map(drop)),
    no_call("open a socket for datagrams", |_| UdpSocket::bind("127.0.0.1:0").map(drop)),
    no_call("connect to a Unix socket", |place| UnixStream::connect(&place.socket).map(drop)),
    no_call("connect to a Unix socket without a file", |_| UnixStream::connect_addr(&abstract_name()?).map(drop)),
    no_call("fork", |_| fork()),
    no_call("signal the parent", |_| Ok(kill(getppid(), None)?)),
    no_call("choose the parent's processors", |_| Ok(sched_setaffinity(getppid(), &sched_getaffinity(Pid::from_raw(0))?)?)),
    no_call("map memory as code", |_| map(libc::PROT_READ | libc::PROT_EXEC).map(drop)),
    no_call("make code of memory", |_| make_code(map(libc::PROT_READ | libc::PROT_WRITE)?)),
    no_call("set a limit", |_| {
        let (now, most) = getrlimit(Resource::RLIMIT_CORE)?;
        Ok(setrlimit(Resource::RLIMIT_CORE, now, most)?)
    }),
];

/// Called with arguments that make no sense, most of them, which outside are errors and no more.
pub(crate) const HOSTILE: &[Attempt] = &[
    // No signal is let in while it happens, so that the refusal cannot be handled.
    ends("start a program", |_| Command::new("true").spawn()?.wait().map(drop)),
    ends("become another program", |_| Err(Command::new("true").exec())),
    ends("be traced", |_| call(libc::SYS_ptrace, [-1, 0, 0])),
    ends("read the memory of the parent", |_| call(libc::SYS_process_vm_readv, [getppid().as_raw().into(), 0, 0])),
    ends("take a descriptor of another process", |_| call(libc::SYS_pidfd_getfd, [-1, -1, 0])),
    ends("load a program into the kernel", |_| call(libc::SYS_bpf, [-1, 0, 0])),
    ends("load a module", |_| call(libc::SYS_finit_module, [-1, 0, 0])),
    ends("measure the kernel", |_| call(libc::SYS_perf_event_open, [0, -1, -1])),
    ends("have the kernel make system calls", |_| call(libc::SYS_io_uring_setup, [0, 0, 0])),
    ends("mount", |_| call(libc::SYS_mount, [0, 0, 0])),
    ends("enter a namespace", |_| call(libc::SYS_setns, [-1, 0, 0])),
    ends("make a namespace", |_| call(libc::SYS_unshare, [0, 0, 0])),
    ends("change the root", |_| call(libc::SYS_chroot, [0, 0, 0])),
    ends("become somebody else", |_| call(libc::SYS_setuid, [-1, 0, 0])),
    ends("read keys of the kernel", |_| call(libc::SYS_keyctl, [-1, 0, 0])),
    ends("open a file by its number", |_| call(libc::SYS_open_by_handle_at, [-1, 0, 0])),
];

pub(crate) const POSSIBLE: &[Attempt] = &[
    works("start a thread", |_| std::thread::Builder::new().spawn(|| ())?.join().map_err(|_| io::Error::other("panicked"))),
    works("choose its own processors", |_| Ok(sched_setaffinity(Pid::from_raw(0), &sched_getaffinity(Pid::from_raw(0))?)?)),
    works("write an image", |place| File::create(&place.image)?.write_all_at(b"image", 1 << 20)),
    works("make another file beside the image", |place| File::create(place.image.with_extension("new"))?.write_all_at(b"image", 0)),
    works("read the page map", |_| File::open("/proc/self/pagemap").map(drop)),
    works("read how much memory there is", |_| fs::read_to_string("/proc/meminfo").map(drop)),
    works("read which control groups it is in", |_| fs::read_to_string("/proc/self/cgroup").map(drop)),
    works("read what its control groups leave", |_| group_limits().iter().try_for_each(|file| fs::read_to_string(file).map(drop))),
    works("read what the pool of huge pages has", |_| huge_pages_left()),
    works("make a pipe", |_| io::pipe().map(drop)),
    works("make memory", |_| Ok(memfd_create("memory", MFdFlags::MFD_CLOEXEC).map(drop)?)),
    works("make a pair of sockets", |_| UnixStream::pair().map(drop)),
    works("find random numbers", |_| call(libc::SYS_getrandom, [0, 0, 0])),
    works("panic and catch it", |_| std::panic::catch_unwind(|| panic!("on purpose")).map_or(Ok(()), |()| Err(io::Error::other("did not")))),
    works("read from a socket that was open", |_| {
        let (mut one, other) = UnixStream::pair()?;
        drop(other);
        one.read(&mut [0]).map(drop)
    }),
];

/// One that does not exist, but might one day.
const UNKNOWN: Attempt = no_call("an unknown system call, twice", |_| {
    let _ = call(1000, [0; 3]);
    call(1000, [0; 3])
});

fn abstract_name() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("pageferry-sandbox-{}", std::process::id()))
}

/// Any system call, for what is refused or makes no sense.
fn call(number: i64, arguments: [i64; 3]) -> io::Result<()> {
    let [one, two, three] = arguments;
    // SAFETY: the arguments of all calls that come here are null pointers and numbers; none reaches memory.
    match unsafe { libc::syscall(number, one, two, three, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn fork() -> io::Result<()> {
    // SAFETY: the child ends at once, without a word.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: always.
        0 => unsafe { libc::_exit(0) },
        child => Ok(nix::sys::wait::waitpid(Pid::from_raw(child), None).map(drop)?),
    }
}

fn map(protection: libc::c_int) -> io::Result<*mut libc::c_void> {
    // SAFETY: new memory, wherever there is room.
    match unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        memory => Ok(memory),
    }
}

fn make_code(memory: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: the memory is this attempt's.
    match unsafe { libc::mprotect(memory, 4096, libc::PROT_READ | libc::PROT_EXEC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
