//! Two QPs of one process, connected to each other.
use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rnic::{Access, Completion, ConnectOptions, Context, Cq, Mr, Qp, QpConfig};

/// How long nothing may complete.
const STALL: Duration = Duration::from_secs(10);

/// One of the two, with a CQ and memory of its own.
pub struct End {
    /// The QP.
    pub qp: Qp,
    /// Both its queues complete here.
    pub cq: Cq,
    /// What the other end may write and read.
    pub memory: Mr,
}

/// Both.
pub struct Pair {
    /// The first is on the first device.
    pub ends: [End; 2],
}

/// What [`Pair::write`] does.
#[derive(Copy, Clone, Debug)]
pub struct Load {
    /// Bytes of a WRITE.
    pub size: usize,
    /// WRITEs in flight in each direction.
    pub window: u64,
    /// Every how many one is signalled; that many are posted with one doorbell.
    pub batch: u64,
}

/// How far [`Pair::write`] has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// Set from outside: nothing more is posted.
    pub stop: AtomicBool,
    /// WRITEs done.
    pub done: AtomicU64,
}

impl Pair {
    /// Opens the devices, which may be one, makes `bytes` of memory at each end and connects the QPs, whose queues have
    /// room for `depth` requests.
    pub fn connect(socket: &Path, devices: [&str; 2], bytes: usize, depth: u32) -> anyhow::Result<Self> {
        let first = Context::open(socket, devices[0])?;
        let second = match devices[0] == devices[1] {
            true => first.clone(),
            false => Context::open(socket, devices[1])?,
        };
        let end = |context: &Context| -> rnic::Result<End> {
            let pd = context.alloc_pd()?;
            let cq = context.create_cq(2 * depth)?;
            let qp = pd.create_qp(
                QpConfig::new(&cq, &cq)
                    .max_send_wr(depth)
                    .max_recv_wr(depth)
                    .max_inline(64),
            )?;
            let rights = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
            let memory = pd.alloc_mr(bytes, rights)?;
            Ok(End { qp, cq, memory })
        };
        let ends = [end(&first)?, end(&second)?];
        let options = ConnectOptions::default();
        let endpoints = [ends[0].qp.endpoint(&options)?, ends[1].qp.endpoint(&options)?];
        ends[0]
            .qp
            .connect(&endpoints[1], &options)
            .context("connecting")?;
        ends[1]
            .qp
            .connect(&endpoints[0], &options)
            .context("connecting")?;
        Ok(Pair { ends })
    }

    /// WRITEs in both directions, with full windows, until it is told to stop; counts what is done.
    pub fn write(&self, load: Load, progress: &Progress) -> anyhow::Result<()> {
        let mut in_flight = [0; 2];
        let mut last = Instant::now();
        let mut out = [Completion::default(); 32];
        loop {
            let more = !progress.stop.load(Ordering::Relaxed);
            if !more && in_flight == [0; 2] {
                return Ok(());
            }
            let now = Instant::now();
            if now - last > STALL {
                bail!("nothing completed for {STALL:?}");
            }
            for (at, flying) in in_flight.iter_mut().enumerate() {
                while more && *flying + load.batch <= load.window {
                    self.post(at, load)?;
                    *flying += load.batch;
                }
                let count = self.ends[at].cq.poll(&mut out);
                for completion in &out[..count] {
                    completion.ok()?;
                    *flying -= load.batch;
                    progress.done.fetch_add(load.batch, Ordering::Relaxed);
                    last = now;
                }
            }
        }
    }

    /// So many WRITEs, and those that fill the last batch, from the first end to the second; how many there were.
    pub fn write_one_way(&self, load: Load, count: u64) -> anyhow::Result<u64> {
        let (mut posted, mut done, mut last) = (0, 0, Instant::now());
        let mut out = [Completion::default(); 32];
        while done < count.max(posted) {
            while posted < count && posted - done + load.batch <= load.window {
                self.post(0, load)?;
                posted += load.batch;
            }
            let found = self.ends[0].cq.poll(&mut out);
            for completion in &out[..found] {
                completion.ok()?;
                done += load.batch;
            }
            match found {
                0 if last.elapsed() > STALL => bail!("nothing completed for {STALL:?}"),
                0 => {}
                _ => last = Instant::now(),
            }
        }
        Ok(done)
    }

    fn post(&self, from: usize, load: Load) -> rnic::Result<()> {
        let (own, peer) = (&self.ends[from], &self.ends[1 - from]);
        let local = [own.memory.slice(..load.size)];
        own.qp.post(|batch| {
            for i in 1..=load.batch {
                // The second half is what the other end writes to.
                let wr = batch.write(&local, peer.memory.remote().at(load.size as u64));
                if i == load.batch {
                    wr.signaled();
                }
            }
        })?;
        Ok(())
    }
}
