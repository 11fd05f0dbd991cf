//! A network switch in this process: each node has a network namespace with a TAP device, whose Ethernet frames come here
//! and are delayed, lost, repeated, reordered or dropped, for each direction of each link alone.
//!
//! It replaces veth pairs, a bridge, packet filters and netem, needs nothing but /dev/net/tun, and is the same everywhere.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::processes::{Failure, Tried, tool};
use super::random::Random;

/// Large frames cost fewer system calls.
const MTU: usize = 9_000;
const FRAME_MAX: usize = MTU + 64;

/// Frames that may be under way. More are lost, as in any switch.
const QUEUE_MAX: usize = 20_000;

/// How often a reader looks whether it should end.
const POLL_MS: libc::c_int = 50;

/// Port 0 is this machine, from which clients reach the nodes.
pub const HUB: usize = 0;

/// What one direction of a link does to frames.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Link {
    pub cut: bool,
    pub lost_percent: u64,
    pub repeated_percent: u64,
    /// Each frame takes a time between these.
    pub delay_us: (u64, u64),
    /// 0: no limit.
    pub bytes_per_second: u64,
}

/// A frame on its way.
struct Flight {
    due: Instant,
    /// Keeps the order of what is due at the same moment.
    sequence: u64,
    to: usize,
    frame: Vec<u8>,
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Flight {}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Flight {
    fn key(&self) -> (Instant, u64) {
        (self.due, self.sequence)
    }
}

struct State {
    /// By sender, then receiver.
    links: Vec<Vec<Link>>,
    /// When each direction is free again, if its rate is limited.
    free_at: Vec<Vec<Instant>>,
    flights: BinaryHeap<Reverse<Flight>>,
    sequence: u64,
    random: Random,
}

struct Shared {
    ports: Vec<File>,
    state: Mutex<State>,
    wake: Condvar,
    ended: AtomicBool,
}

pub struct Switch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    namespaces: Vec<PathBuf>,
}

/// Node `number` has the address 10.77.0.`number`.
pub fn address(number: u8) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::new(10, 77, 0, number)
}

impl Switch {
    /// Namespaces for `count` nodes, and ports for them and this machine.
    pub fn start(count: u8, random: Random) -> Result<Switch, Failure> {
        let mut ports = vec![open_tap("hub")?];
        let mut namespaces = Vec::new();
        set_up("ip", "hub", 254)?;
        for number in 1..=count {
            let (namespace, device) = (format!("chaos{number}"), format!("tap{number}"));
            ports.push(open_tap(&device)?);
            tool(&format!("ip netns add {namespace}"))?;
            tool(&format!("ip link set {device} netns {namespace}"))?;
            let ip = format!("ip -n {namespace}");
            tool(&format!("{ip} link set lo up"))?;
            set_up(&ip, &device, number)?;
            namespaces.push(Path::new("/run/netns").join(namespace));
        }
        let size = ports.len();
        let state = State {
            links: vec![vec![Link::default(); size]; size],
            free_at: vec![vec![Instant::now(); size]; size],
            flights: BinaryHeap::new(),
            sequence: 0,
            random,
        };
        let shared =
            Arc::new(Shared { ports, state: Mutex::new(state), wake: Condvar::new(), ended: AtomicBool::new(false) });
        let mut threads: Vec<_> = (0..size)
            .map(|from| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.receive(from))
            })
            .collect();
        let deliverer = Arc::clone(&shared);
        threads.push(std::thread::spawn(move || deliverer.deliver()));
        Ok(Switch { shared, threads, namespaces })
    }

    /// Where node `number` runs.
    pub fn namespace(&self, number: usize) -> &Path {
        &self.namespaces[number - 1]
    }

    /// Changes the direction from one node to another.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        self.shared.lock().links[from][to] = link;
    }

    /// Changes both directions.
    pub fn set_both(&self, one: usize, other: usize, link: Link) {
        self.set(one, other, link);
        self.set(other, one, link);
    }

    /// Changes all directions between nodes. Clients reach the nodes as before.
    pub fn set_all(&self, link: Link) {
        let mut state = self.shared.lock();
        for (from, row) in state.links.iter_mut().enumerate().skip(1) {
            for (to, direction) in row.iter_mut().enumerate().skip(1) {
                *direction = if from == to { Link::default() } else { link };
            }
        }
    }

    pub fn heal(&self) {
        self.set_all(Link::default());
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A thread of the switch that panicked has said so.
            let _ = thread.join();
        }
        for namespace in &self.namespaces {
            let name = namespace.file_name().unwrap_or_default().to_string_lossy();
            // What stays goes with this process.
            let _ = std::process::Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes frames of one port, for ever.
    fn receive(&self, from: usize) {
        let mut buffer = vec![0; FRAME_MAX];
        while !self.ended.load(Ordering::Relaxed) {
            if !readable(&self.ports[from]) {
                continue;
            }
            match (&self.ports[from]).read(&mut buffer) {
                Ok(len) => self.forward(from, &buffer[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn forward(&self, from: usize, frame: &[u8]) {
        let Some(destination) = frame.first_chunk::<6>() else { return };
        let targets: Vec<usize> = match port_of(destination) {
            Some(port) if port < self.ports.len() => vec![port],
            Some(_) => return,
            None => (0..self.ports.len()).filter(|port| *port != from).collect(),
        };
        for to in targets {
            self.pass(from, to, frame);
        }
    }

    fn pass(&self, from: usize, to: usize, frame: &[u8]) {
        let mut state = self.lock();
        let link = state.links[from][to];
        if link.cut || state.random.chance(link.lost_percent) {
            return;
        }
        if link == Link::default() {
            drop(state);
            self.hand_over(to, frame);
            return;
        }
        let copies = if state.random.chance(link.repeated_percent) { 2 } else { 1 };
        for _ in 0..copies {
            if state.flights.len() >= QUEUE_MAX {
                return;
            }
            let mut due = Instant::now();
            if let Some(nanoseconds) = (frame.len() as u64 * 1_000_000_000).checked_div(link.bytes_per_second) {
                let free_at = state.free_at[from][to].max(due);
                state.free_at[from][to] = free_at + Duration::from_nanos(nanoseconds);
                due = state.free_at[from][to];
            }
            due += Duration::from_micros(state.random.between(link.delay_us.0, link.delay_us.1));
            state.sequence += 1;
            let flight = Flight { due, sequence: state.sequence, to, frame: frame.to_vec() };
            state.flights.push(Reverse(flight));
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Hands over what was delayed, when it is due.
    fn deliver(&self) {
        let mut state = self.lock();
        while !self.ended.load(Ordering::Relaxed) {
            let now = Instant::now();
            let wait = match state.flights.peek() {
                Some(Reverse(flight)) if flight.due <= now => Duration::ZERO,
                Some(Reverse(flight)) => flight.due - now,
                None => Duration::from_millis(POLL_MS as u64),
            };
            if wait.is_zero() {
                let Reverse(flight) = state.flights.pop().expect("it was just seen");
                drop(state);
                self.hand_over(flight.to, &flight.frame);
                state = self.lock();
                continue;
            }
            let wait = wait.min(Duration::from_millis(POLL_MS as u64));
            state = self.wake.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn hand_over(&self, to: usize, frame: &[u8]) {
        // A port whose device is down or full loses the frame, as a cable does.
        let _ = (&self.ports[to]).write(frame);
    }
}

/// Our devices have hardware addresses with their port at the end; `None`: for everybody.
fn port_of(destination: &[u8; 6]) -> Option<usize> {
    match destination {
        [2, 0, 0, 0, 0, 254] => Some(HUB),
        [2, 0, 0, 0, 0, number] => Some(usize::from(*number)),
        _ => None,
    }
}

fn set_up(ip: &str, device: &str, number: u8) -> Result<(), Failure> {
    tool(&format!("{ip} link set {device} address 02:00:00:00:00:{number:02x} mtu {MTU}"))?;
    tool(&format!("{ip} addr add {}/24 dev {device}", address(number)))?;
    tool(&format!("{ip} link set {device} up"))
}

/// A TAP device, in the network namespace of this process; it lives as long as the file.
fn open_tap(name: &str) -> Result<File, Failure> {
    let file = File::options().read(true).write(true).open("/dev/net/tun").tried(|| "/dev/net/tun".into())?;
    // SAFETY: the zeroed structure is a valid empty one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is; the descriptor is open.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) } < 0 {
        return Err(std::io::Error::last_os_error()).tried(|| format!("the network device {name}"));
    }
    Ok(file)
}

fn readable(file: &File) -> bool {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which lives through the call.
    let ready = unsafe { libc::poll(&mut poll, 1, POLL_MS) };
    ready > 0 && poll.revents & libc::POLLIN != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_first_goes_first_and_equals_keep_their_order() {
        let now = Instant::now();
        let mut flights = BinaryHeap::new();
        for (sequence, after_ms) in [(1, 5), (2, 1), (3, 5), (4, 0)] {
            let due = now + Duration::from_millis(after_ms);
            flights.push(Reverse(Flight { due, sequence, to: 0, frame: vec![] }));
        }
        let order: Vec<u64> = std::iter::from_fn(|| flights.pop()).map(|Reverse(flight)| flight.sequence).collect();
        assert_eq!(order, [4, 2, 1, 3]);
    }

    #[test]
    fn frames_go_to_their_port_or_to_everybody() {
        assert_eq!(port_of(&[2, 0, 0, 0, 0, 3]), Some(3));
        assert_eq!(port_of(&[2, 0, 0, 0, 0, 254]), Some(HUB));
        assert_eq!(port_of(&[255; 6]), None);
    }
}
