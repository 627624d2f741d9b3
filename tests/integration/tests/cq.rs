//! Completion queues in the hands of applications: resized under traffic, moderated, with timestamps.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rnic::{Access, Completion, ConnectOptions, Context, Cq, Mr, Pd, Qp, QpConfig};
use rnic_tests::{Appliance, Setup, Turn};

const SOON: Option<Duration> = Some(Duration::from_secs(20));
/// Requests outstanding, at most.
const WINDOW: u64 = 48;

struct End {
    context: Context,
    _pd: Pd,
    cq: Cq,
    qp: Qp,
    mr: Mr,
}

fn end(appliance: &Appliance, device: &str) -> End {
    let context = appliance.open(device);
    let pd = context.alloc_pd().unwrap();
    let cq = context.create_cq(64).unwrap();
    let qp = pd.create_qp(QpConfig::new(&cq, &cq)).unwrap();
    let mr = pd
        .alloc_mr(4096, Access::LOCAL_WRITE | Access::REMOTE_WRITE)
        .unwrap();
    End {
        context,
        _pd: pd,
        cq,
        qp,
        mr,
    }
}

fn connected(appliance: &Appliance) -> [End; 2] {
    let ends = ["rnic0", "rnic1"].map(|device| end(appliance, device));
    let options = ConnectOptions::default();
    let [pa, pb] = [0, 1].map(|i: usize| ends[i].qp.endpoint(&options).unwrap());
    ends[0].qp.connect(&pb, &options).unwrap();
    ends[1].qp.connect(&pa, &options).unwrap();
    ends
}

fn write(from: &End, to: &End, wr_id: u64) {
    let there = to.mr.remote().at(0);
    from.qp
        .post(|batch| {
            batch.write(from.mr.slice(..64), there).wr_id(wr_id).signaled();
        })
        .unwrap();
}

/// Writes until the other side has had enough; every completion comes once, in order.
fn traffic(from: &End, to: &End, wait: bool, over: &AtomicBool) -> u64 {
    let (mut posted, mut done) = (0, 0);
    let mut out = [Completion::default(); 7];
    while !over.load(Ordering::Relaxed) || done < posted {
        while posted - done < WINDOW && !over.load(Ordering::Relaxed) {
            write(from, to, posted);
            posted += 1;
        }
        let count = match wait {
            true => from.cq.wait(&mut out, SOON).unwrap(),
            false => from.cq.spin(&mut out, SOON).unwrap(),
        };
        assert!(count > 0 || done == posted, "{done} of {posted} and no more");
        for completion in &out[..count] {
            assert_eq!(completion.ok().unwrap().wr_id, done);
            done += 1;
        }
    }
    done
}

#[test]
fn queues_are_resized_under_traffic_and_lose_nothing() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().cores(2));
    let ends = connected(&appliance);
    let [a, b] = &ends;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = [
            scope.spawn(|| traffic(a, b, false, &over)),
            scope.spawn(|| traffic(b, a, true, &over)),
        ];
        for round in 0..200 {
            for (end, shift) in [(a, round), (b, round + 3)] {
                end.cq.resize(64 << (shift % 7)).unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
        for thread in busy {
            assert!(thread.join().unwrap() > 0);
        }
    });
    drop(ends);
    appliance.stop();
}

#[test]
fn a_moderated_queue_wakes_its_waiters_in_time() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().cores(2));
    let ends = connected(&appliance);
    let [a, b] = &ends;
    a.cq.moderate(64, Duration::from_millis(3)).unwrap();
    let attr = a.cq.query().unwrap();
    assert_eq!(
        (attr.moderation_count, attr.moderation_period),
        (64, Duration::from_millis(3))
    );
    for wr_id in 0..20 {
        write(a, b, wr_id);
        assert_eq!(
            a.cq.wait_vec(4, SOON).unwrap()[0].wr_id,
            wr_id,
            "its time is over, with a count of 1"
        );
    }
    // It goes along when the queue is resized.
    a.cq.resize(1000).unwrap();
    assert_eq!(a.cq.query().unwrap(), rnic::CqAttr { depth: 1024, ..attr });
    write(a, b, 99);
    assert_eq!(a.cq.wait_vec(4, SOON).unwrap()[0].wr_id, 99);
    drop(ends);
    appliance.stop();
}

#[test]
fn timestamps_are_of_the_clock_that_can_be_asked_for() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back());
    let ends = connected(&appliance);
    let [a, b] = &ends;
    assert_eq!(a.context.attr().core_clock_khz, 1_000_000);
    let before = a.context.raw_clock().unwrap();
    write(a, b, 1);
    let done = a.cq.wait_vec(1, SOON).unwrap()[0];
    let after = a.context.raw_clock().unwrap();
    assert!(
        (before..=after).contains(&done.timestamp),
        "{before} {} {after}",
        done.timestamp
    );
    drop(ends);
    appliance.stop();
}
