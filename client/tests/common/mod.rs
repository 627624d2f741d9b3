//! A daemon and two connected QPs, for every test. With `RNIC_TEST_SOCKET` set, the tests run against the daemon
//! that listens there, with its devices `rnic0` and `rnic1`.
#![allow(dead_code)]

use std::path::PathBuf;
use std::time::Duration;

use rnic::{Access, Completion, ConnectOptions, Context, Cq, Mr, Pd, Qp, QpConfig, Result};

use crate::mock::Mock;

/// Long enough for anything that should happen.
pub const SOON: Option<Duration> = Some(Duration::from_secs(20));
pub const NOW: Option<Duration> = Some(Duration::ZERO);

pub struct Daemon {
    pub socket: PathBuf,
    pub mock: Option<Mock>,
}

impl Daemon {
    pub fn start() -> Daemon {
        match std::env::var_os("RNIC_TEST_SOCKET") {
            Some(socket) => Daemon {
                socket: socket.into(),
                mock: None,
            },
            None => {
                let mock = Mock::start();
                Daemon {
                    socket: mock.socket.clone(),
                    mock: Some(mock),
                }
            }
        }
    }
}

/// One end: a device with a QP, one CQ for both its queues, and a buffer open to the peer.
pub struct Side {
    pub qp: Qp,
    pub cq: Cq,
    pub mr: Mr,
    pub pd: Pd,
    pub context: Context,
}

pub fn everything() -> Access {
    Access::LOCAL_WRITE | Access::REMOTE_READ | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC
}

impl Side {
    pub fn open(daemon: &Daemon, device: &str, configure: impl FnOnce(QpConfig) -> QpConfig) -> Side {
        let context = Context::open(&daemon.socket, device).unwrap();
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(64).unwrap();
        let qp = pd.create_qp(configure(QpConfig::new(&cq, &cq))).unwrap();
        let mr = pd.alloc_mr(64 << 10, everything()).unwrap();
        Side {
            qp,
            cq,
            mr,
            pd,
            context,
        }
    }

    /// Waits for exactly `count` completions.
    pub fn completions(&self, count: usize) -> Vec<Completion> {
        let mut all = Vec::new();
        while all.len() < count {
            let some = self.cq.wait_vec(count - all.len(), SOON).unwrap();
            assert!(!some.is_empty(), "only {} of {count} completions came", all.len());
            all.extend(some);
        }
        all
    }

    /// Waits for one successful completion.
    pub fn completion(&self) -> Completion {
        self.completions(1)[0].ok().unwrap()
    }
}

pub fn connect(a: &Qp, b: &Qp) -> Result<()> {
    let options = ConnectOptions::default();
    let (for_a, for_b) = (b.endpoint(&options)?, a.endpoint(&options)?);
    a.connect(&for_a, &options)?;
    b.connect(&for_b, &options)
}

pub fn pair_with(daemon: &Daemon, configure: impl Fn(QpConfig) -> QpConfig) -> (Side, Side) {
    let sides = (
        Side::open(daemon, "rnic0", &configure),
        Side::open(daemon, "rnic1", &configure),
    );
    connect(&sides.0.qp, &sides.1.qp).unwrap();
    sides
}

pub fn pair(daemon: &Daemon) -> (Side, Side) {
    pair_with(daemon, |config| config)
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed)
        .collect()
}
