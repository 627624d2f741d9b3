//! A client of the library, with a thread that takes its events: what the library promises of destroyed objects.
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rnic::{
    Access, AsyncEvents, ConnectOptions, Context, Cq, Error, EventKind, EventObject, Mr, Pd, Qp, QpConfig,
    RemoteAddr, Status,
};
use rnic_tests::probe::Rng;

use crate::worker::{Done, PATIENCE};

/// QPs that live, and those that may raise an event.
#[derive(Default)]
struct Known {
    live: HashSet<u32>,
    raised: Vec<(EventKind, u32)>,
}

struct Objects {
    events: AsyncEvents,
    pd: Pd,
    cq: Cq,
    mr: Mr,
}

/// Creates, uses, breaks and destroys QPs until told to stop.
pub fn run(socket: &Path, seed: &[u64], stop: &AtomicBool) -> Result<Done> {
    let context = Context::open(socket, "rnic0")?;
    let pd = context.alloc_pd()?;
    let rights = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
    let objects = Objects {
        events: context.async_events(),
        cq: context.create_cq(128)?,
        mr: pd.alloc_mr(8192, rights)?,
        pd,
    };
    let known = Mutex::new(Known::default());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let listener = scope.spawn(|| listen(&objects.events, &known, &over));
        let result = work(&objects, seed, &known, stop);
        over.store(true, Ordering::Relaxed);
        let heard = listener.join().unwrap_or_else(|_| bail!("the listener panicked"));
        result.and_then(|done| heard.map(|()| done))
    })
}

fn listen(events: &AsyncEvents, known: &Mutex<Known>, over: &AtomicBool) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        let Some(event) = events.next(Some(Duration::from_millis(20)))? else {
            continue;
        };
        let EventObject::Qp(qpn) = event.object else {
            continue;
        };
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        // The destruction waits until this event is dropped, and only then is the QP taken off the list.
        ensure!(
            known.live.contains(&qpn),
            "an event of a QP that is destroyed: {event}"
        );
        ensure!(
            !known.raised.contains(&(event.kind, qpn)),
            "a second event of one kind: {event}"
        );
        known.raised.push((event.kind, qpn));
    }
    Ok(())
}

fn work(objects: &Objects, seed: &[u64], known: &Mutex<Known>, stop: &AtomicBool) -> Result<Done> {
    let mut rng = Rng::new(seed);
    let mut done = Done::default();
    while !stop.load(Ordering::Relaxed) {
        let pair = match pair(objects) {
            Ok(pair) => pair,
            // Ids are scarce.
            Err(Error::Daemon { errno: 11 | 12, .. }) => {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let numbers = [pair[0].qpn(), pair[1].qpn()];
        let lock = || known.lock().unwrap_or_else(PoisonError::into_inner);
        lock().live.extend(numbers);
        use_pair(objects, &pair, &mut rng, &mut done, &lock)?;
        for qp in pair {
            let qpn = qp.qpn();
            qp.destroy()?;
            let mut known = lock();
            known.live.remove(&qpn);
            known.raised.retain(|(_, of)| *of != qpn);
            drop(known);
            done.count("library: QPs destroyed");
        }
        let mut rest = [rnic::Completion::default(); 16];
        let late = objects.cq.poll(&mut rest);
        ensure!(late == 0, "completions of destroyed QPs: {:?}", &rest[..late]);
    }
    Ok(done)
}

fn pair(objects: &Objects) -> rnic::Result<[Qp; 2]> {
    let config = || {
        QpConfig::new(&objects.cq, &objects.cq)
            .max_send_wr(8)
            .max_recv_wr(8)
    };
    let qps = [objects.pd.create_qp(config())?, objects.pd.create_qp(config())?];
    let options = ConnectOptions {
        rd_atomic: 4,
        ..ConnectOptions::default()
    };
    let [a, b] = [qps[0].endpoint(&options)?, qps[1].endpoint(&options)?];
    qps[0].connect(&b, &options)?;
    qps[1].connect(&a, &options)?;
    Ok(qps)
}

fn use_pair<'k>(
    objects: &Objects,
    [a, b]: &[Qp; 2],
    rng: &mut Rng,
    done: &mut Done,
    known: &dyn Fn() -> std::sync::MutexGuard<'k, Known>,
) -> Result<()> {
    let Objects { cq, mr, .. } = objects;
    let len = 1 + rng.below(3000);
    let data = rng.bytes(len);
    mr.write_at(0, &data);
    let target = mr.slice(4096..).remote();
    let bad = RemoteAddr {
        rkey: target.rkey ^ 0x33,
        ..target.into()
    };
    let choice = rng.below(4);
    a.post(|batch| {
        batch.write(mr.slice(..len), target).wr_id(1).signaled();
        if choice == 0 {
            batch.write(mr.slice(..len), bad).wr_id(2).signaled();
        }
    })?;
    if choice == 1 {
        // Destroyed with everything in flight.
        done.count("library: QPs destroyed in flight");
        return Ok(());
    }
    let wanted = if choice == 0 { 2 } else { 1 };
    let mut got = Vec::new();
    while got.len() < wanted {
        let more = cq.wait_vec(4, Some(PATIENCE))?;
        ensure!(!more.is_empty(), "no completion within {PATIENCE:?}");
        got.extend(more);
    }
    ensure!(got[0].status == Status::Success, "{:?}", got[0]);
    ensure!(mr.read_vec(4096, len) == data, "{len} bytes arrived as others");
    done.add("library: bytes verified", len as u64);
    if choice == 0 {
        ensure!(got[1].status == Status::RemoteAccess, "{:?}", got[1]);
        if rng.below(2) == 0 {
            let seen = rnic_tests::poll_until(PATIENCE, || {
                let event = (EventKind::QpAccessError, b.qpn());
                known().raised.contains(&event).then_some(())
            });
            ensure!(seen.is_some(), "no event of an access error within {PATIENCE:?}");
            done.count("library: events seen");
        }
    }
    Ok(())
}
