//! The plan of one run: what its messages do, and where everything lies.
use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use rnic_wire::Mtu;

use crate::args::{Args, Mode};

/// Bytes in front of a datagram where it is received.
const GRH_AREA: u64 = 40;

/// What a message does.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Operation {
    Write,
    Send,
    Read,
    FetchAdd,
}

/// The plan of one run.
#[derive(Copy, Clone)]
pub struct Plan {
    pub mode: Mode,
    pub size: u32,
    /// Connections, of all cores.
    pub qps: u32,
    pub cores: u32,
    /// Frames taken from a port, and given to one, at a time.
    pub burst: usize,
    pub outstanding: u32,
    pub signal_every: u32,
    pub mtu: Mtu,
    /// Buffers of each end of a connection.
    pub buffers: u32,
    /// Code of the local ACK timeout.
    pub timeout: u8,
}

impl Plan {
    pub fn new(args: &Args) -> Result<Self> {
        let mtu = Mtu::ALL.into_iter().find(|mtu| mtu.bytes() == args.mtu as usize);
        let mtu = mtu.with_context(|| format!("--mtu {}: 256, 512, 1024, 2048 or 4096", args.mtu))?;
        ensure!(
            args.outstanding.is_multiple_of(args.signal_every),
            "--outstanding {} is no multiple of --signal-every {}",
            args.outstanding,
            args.signal_every
        );
        ensure!(
            args.mode != Mode::RcAtomic || args.size == 8,
            "atomics have 8 bytes: --size 8"
        );
        ensure!(
            args.mode != Mode::Mixed || args.size >= 8 && args.outstanding.is_multiple_of(4) && !args.reuse,
            "--mode mixed: --size of 8 or more, --outstanding a multiple of 4, and no --reuse"
        );
        ensure!(
            args.mode != Mode::UdSend || args.size as usize <= mtu.bytes(),
            "--size {}: a datagram is one packet of at most {} bytes",
            args.size,
            mtu.bytes()
        );
        let qps = args.qps.unwrap_or(args.cores);
        ensure!(
            qps >= args.cores,
            "--qps {qps}: fewer connections than the {} cores",
            args.cores
        );
        ensure!(!args.bare || args.cores == 1, "--bare is of one core");
        Ok(Plan {
            mode: args.mode,
            size: args.size,
            qps,
            cores: args.cores,
            burst: args.burst as usize,
            outstanding: args.outstanding,
            signal_every: args.signal_every,
            mtu,
            buffers: if args.reuse { 1 } else { args.outstanding },
            // Never, where the same is to happen however slow the machine is.
            timeout: if args.messages.is_some() { 0 } else { 14 },
        })
    }

    /// The connections of a core.
    pub fn connections(&self, core: u32) -> Range<u32> {
        let before = |core: u32| (u64::from(self.qps) * u64::from(core) / u64::from(self.cores)) as u32;
        before(core)..before(core + 1)
    }

    /// Bytes between two buffers.
    fn stride(&self) -> u64 {
        (u64::from(self.size) + self.headroom())
            .next_multiple_of(64)
            .max(64)
    }

    /// Bytes in front of the payload in every buffer.
    pub fn headroom(&self) -> u64 {
        match self.mode {
            Mode::UdSend => GRH_AREA,
            _ => 0,
        }
    }

    /// What message `index` of a connection does.
    #[inline]
    pub fn operation(&self, index: u32) -> Operation {
        use Operation::{FetchAdd, Read, Send, Write};
        match self.mode {
            Mode::RcWrite | Mode::Io => Write,
            Mode::RcSend | Mode::UdSend => Send,
            Mode::RcRead => Read,
            Mode::RcAtomic => FetchAdd,
            Mode::Mixed => [Write, Send, Read, FetchAdd][index as usize % 4],
        }
    }

    /// Which message takes receive `number` of a connection.
    #[inline]
    pub fn receiver(&self, number: u32) -> u32 {
        match self.mode {
            Mode::Mixed => number.wrapping_mul(4).wrapping_add(1),
            _ => number,
        }
    }

    /// The buffer that has the word of atomics.
    pub fn counter(&self) -> u32 {
        match self.mode {
            Mode::Mixed => 3,
            _ => 0,
        }
    }

    pub fn receives(&self) -> bool {
        matches!(self.mode, Mode::RcSend | Mode::UdSend | Mode::Mixed)
    }

    /// Bytes that all buffers of one side take.
    pub fn side(&self) -> u64 {
        self.stride() * u64::from(self.buffers) * u64::from(self.qps)
    }

    /// Offset of a buffer of one side.
    pub fn buffer(&self, connection: u32, index: u32, target: bool) -> u64 {
        let which = u64::from(connection) * u64::from(self.buffers) + u64::from(index % self.buffers);
        which * self.stride() + self.headroom() + if target { self.side() } else { 0 }
    }

    /// Packets that carry one message.
    pub fn packets(&self) -> u64 {
        u64::from(self.size).div_ceil(self.mtu.bytes() as u64).max(1)
    }

    pub fn sq_depth(&self) -> u32 {
        self.outstanding.next_power_of_two()
    }

    /// Twice what is in flight: the receives of messages whose acknowledgement is still on its way are posted, too.
    pub fn rq_depth(&self) -> u32 {
        2 * self.sq_depth()
    }

    /// Of each core's part.
    pub fn cq_depth(&self) -> u32 {
        let each = match self.receives() {
            true => self.rq_depth(),
            false => self.outstanding / self.signal_every + 1,
        };
        (self.qps.div_ceil(self.cores) * each).next_power_of_two().max(64)
    }
}
