use std::{fs::File, os::fd::OwnedFd};

use rnic_abi::*;
use rustix::io::Errno;

use crate::{res::ResKind, testing::*, tests::admin::resources};

pub fn open_xrcd(
    client: &mut Client,
    device: u32,
    flags: u32,
    file: &OwnedFd,
) -> Result<OpenXrcdReply, Refused> {
    let arg = OpenXrcd { device, flags };
    let opened = client.call_with(Op::OpenXrcd, &arg, &[file]);
    opened.map(|(reply, _)| reply)
}

pub fn xrc_srq(client: &mut Client, xrcd: u32, pd: u32, cq: u32) -> Result<CreateSrqReply, Refused> {
    let arg = CreateXrcSrq {
        xrcd,
        pd,
        cq,
        max_wr: 4,
        max_sge: 1,
        reserved: 0,
    };
    client.call(Op::CreateXrcSrq, &arg)
}

pub fn target(client: &mut Client, xrcd: u32) -> Result<OpenQpReply, Refused> {
    let arg = HandleArg {
        handle: xrcd,
        reserved: 0,
    };
    client.call(Op::CreateXrcTgt, &arg)
}

pub fn open_qp(client: &mut Client, xrcd: u32, qpn: u32) -> Result<OpenQpReply, Refused> {
    client.call(Op::OpenQp, &OpenQp { xrcd, qpn })
}

/// Brings a target QP to RTR.
pub fn connect_target(client: &mut Client, handle: u32, to: &str, peer: u32) {
    client.make_init(handle);
    client.make_rtr(handle, to, peer).unwrap();
}

fn file() -> OwnedFd {
    sealed_memfd(1)
}

#[test]
fn a_domain_is_what_its_file_is_for_whoever_opens_it_and_the_flags_say_whether_it_may_be_new() {
    let daemon = TestDaemon::start(2);
    let (mut a, mut b) = (daemon.client(), daemon.client());
    let (one, other) = (file(), file());
    let (create, exclusive) = (xrcd_flags::CREATE, xrcd_flags::EXCLUSIVE);
    let none = open_xrcd(&mut a, 0, 0, &one).unwrap_err();
    assert_eq!((none.errno, none.text.contains("O_CREAT")), (Errno::NOENT, true));
    let first = open_xrcd(&mut a, 0, create | exclusive, &one).unwrap();
    let there = open_xrcd(&mut b, 0, create | exclusive, &one).unwrap_err();
    assert_eq!((there.errno, there.text.contains("O_EXCL")), (Errno::EXIST, true));
    // The same file by another way, and opened for reading alone.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&one));
    let again = OwnedFd::from(File::open(path).unwrap());
    let second = open_xrcd(&mut b, 0, 0, &again).unwrap();
    assert_eq!(first.xrcdn, second.xrcdn);
    for (device, flags, file) in [(0, create, &other), (1, create, &one)] {
        let different = open_xrcd(&mut b, device, flags, file).unwrap();
        assert_ne!(different.xrcdn, first.xrcdn);
    }
    let arg = DeviceArg::default();
    let alone: OpenXrcdReply = a.call(Op::AllocXrcd, &arg).unwrap();
    assert_ne!(alone.xrcdn, first.xrcdn);
    let wrong = open_xrcd(&mut a, 0, 4, &one).unwrap_err();
    assert!(wrong.text.contains("flags is 0x4"), "{}", wrong.text);
    let without = a
        .call::<OpenXrcdReply>(Op::OpenXrcd, &OpenXrcd::default())
        .unwrap_err();
    assert!(without.text.contains("it takes 1"), "{}", without.text);
    let (shown, _) = resources(&daemon, ResKind::Xrcd, None);
    let holders = shown.iter().filter(|shown| shown["xrcdn"] == first.xrcdn);
    assert!(
        holders
            .clone()
            .all(|shown| shown["holders"] == 2 && shown["ino"].is_u64())
    );
    assert_eq!((holders.count(), daemon.status().xrcds), (2, 5));
    // It ends with the last one, and then the file is free.
    drop(a);
    b.destroy(Op::CloseXrcd, second.handle).unwrap();
    let anew = open_xrcd(&mut b, 0, create | exclusive, &one).unwrap();
    assert_ne!(anew.xrcdn, first.xrcdn, "numbers come back late");
    drop(b);
    daemon.wait_for_baseline();
}

#[test]
fn a_domain_is_busy_while_its_srqs_and_target_qps_exist_and_a_cq_while_an_xrc_srq_does() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let xrcd = open_xrcd(&mut client, 0, xrcd_flags::CREATE, &file())
        .unwrap()
        .handle;
    let srq = xrc_srq(&mut client, xrcd, pd, cq).unwrap().handle;
    let made = target(&mut client, xrcd).unwrap();
    let opened = open_qp(&mut client, xrcd, made.qpn).unwrap();
    let busy = |client: &mut Client, op, handle| {
        let refused = client.destroy(op, handle).unwrap_err();
        assert_eq!(refused.errno, Errno::BUSY, "{}", refused.text);
    };
    for (op, handle) in [(Op::CloseXrcd, xrcd), (Op::DestroyCq, cq), (Op::DeallocPd, pd)] {
        busy(&mut client, op, handle);
    }
    client.destroy_counting(Op::DestroySrq, srq);
    client.destroy_counting(Op::DestroyCq, cq);
    client.destroy_counting(Op::DestroyQp, made.handle);
    assert_eq!(daemon.status().qps, 1, "it is held still");
    busy(&mut client, Op::CloseXrcd, xrcd);
    client.destroy_counting(Op::DestroyQp, opened.handle);
    assert_eq!(daemon.status().qps, 0);
    let gone = open_qp(&mut client, xrcd, made.qpn).unwrap_err();
    assert_eq!(gone.errno, Errno::NOENT);
    client.destroy(Op::CloseXrcd, xrcd).unwrap();
    client.destroy(Op::DeallocPd, pd).unwrap();
    drop(client);
    daemon.wait_for_baseline();
}

#[test]
fn all_of_a_domain_lives_on_one_core() {
    let daemon = TestDaemon::start(3);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let mut cores = Vec::new();
    for _ in 0..4 {
        let xrcd: OpenXrcdReply = client.call(Op::AllocXrcd, &DeviceArg::default()).unwrap();
        for _ in 0..3 {
            xrc_srq(&mut client, xrcd.handle, pd, cq).unwrap();
            target(&mut client, xrcd.handle).unwrap();
        }
        for kind in [ResKind::Srq, ResKind::Qp, ResKind::Xrcd] {
            let (shown, _) = resources(&daemon, kind, None);
            let of = shown.iter().filter(|shown| shown["xrcdn"] == xrcd.xrcdn);
            cores.extend(of.map(|shown| (xrcd.xrcdn, shown["core"].as_u64().unwrap())));
        }
    }
    assert_eq!(cores.len(), 4 * 7);
    cores.dedup();
    assert_eq!(cores.len(), 4, "{cores:?}");
    assert!(cores.windows(2).any(|pair| pair[0].1 != pair[1].1), "{cores:?}");
    drop(client);
    daemon.wait_for_baseline();
}

#[test]
fn a_target_qp_outlives_the_client_that_made_it_and_not_its_last_holder() {
    let daemon = TestDaemon::start(2);
    let (mut a, mut b) = (daemon.client(), daemon.client());
    let shared = file();
    let ours = open_xrcd(&mut a, 0, xrcd_flags::CREATE, &shared).unwrap().handle;
    let theirs = open_xrcd(&mut b, 0, 0, &shared).unwrap().handle;
    let made = target(&mut a, ours).unwrap();
    let opened = open_qp(&mut b, theirs, made.qpn).unwrap();
    connect_target(&mut a, made.handle, "10.0.0.2", 77);
    let (shown, _) = resources(&daemon, ResKind::Qp, None);
    assert_eq!(shown[0]["type"], "XRC_TGT");
    assert_eq!(shown[0]["holders"].as_array().map(Vec::len), Some(2));
    assert!(shown[0]["pid"].is_null(), "{}", shown[0]);
    drop(a);
    wait_for(|| daemon.status().clients == 1);
    let state: QueryQpReply = b
        .call(
            Op::QueryQp,
            &HandleArg {
                handle: opened.handle,
                reserved: 0,
            },
        )
        .unwrap();
    assert_eq!((state.attrs.qp_state, state.attrs.dest_qp_num), (2, 77));
    // A domain of another number does not reach it, nor does an ordinary QP pass for one.
    let strange: OpenXrcdReply = b.call(Op::AllocXrcd, &DeviceArg::default()).unwrap();
    assert_eq!(
        open_qp(&mut b, strange.handle, made.qpn).unwrap_err().errno,
        Errno::NOENT
    );
    let (pd, cq) = (b.pd(), b.cq());
    let plain = b.qp(pd, cq);
    assert_eq!(
        open_qp(&mut b, theirs, plain.qpn).unwrap_err().errno,
        Errno::NOENT
    );
    drop(b);
    daemon.wait_for_baseline();
}
