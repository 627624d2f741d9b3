//! The generated structures against what the C compiler says about the same headers.
//!
//! Bindgen asserts the layouts that libclang reported; this asks the compiler that built the shims.

use std::ffi::CStr;
use std::mem::{offset_of, size_of};

use dpdk_sys::{Burst, Mbuf, ffi};

/// Rows of (name, offset, size) for structures and their fields.
macro_rules! layout {
    ($($name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        vec![$(
            (stringify!($name).to_owned(), 0, size_of::<ffi::$name>()),
            $((
                concat!(stringify!($name), ".", stringify!($field)).to_owned(),
                offset_of!(ffi::$name, $field),
                size_of::<$type>(),
            ),)*
        )*]
    };
}

fn layout_in_c() -> Vec<(String, usize, usize)> {
    let mut count = 0;
    // SAFETY: the shim answers a static table and writes its length; the names are C strings.
    unsafe {
        let table = ffi::dpdk_layouts(&mut count);
        std::slice::from_raw_parts(table, count)
            .iter()
            .map(|row| {
                (
                    CStr::from_ptr(row.field).to_str().unwrap().to_owned(),
                    row.offset,
                    row.size,
                )
            })
            .collect()
    }
}

#[test]
fn structures_have_the_layout_the_c_compiler_gives_them() {
    let layout_in_rust = layout! {
        rte_mbuf {
            buf_addr: *mut u8,
            data_off: u16,
            refcnt: u16,
            nb_segs: u16,
            port: u16,
            ol_flags: u64,
            pkt_len: u32,
            data_len: u16,
            vlan_tci: u16,
            buf_len: u16,
            pool: *mut u8,
            next: *mut u8,
        }
        rte_ether_addr { addr_bytes: [u8; 6] }
        rte_eth_stats {
            ipackets: u64,
            opackets: u64,
            ibytes: u64,
            obytes: u64,
            imissed: u64,
            ierrors: u64,
            oerrors: u64,
            rx_nombuf: u64,
        }
        rte_rcu_qsbr { token: u64, num_threads: u32 }
        dpdk_port_info { device: *const u8, max_frame: u32, tx_desc_max: u16 }
        dpdk_port_conf { tx_queues: u16 }
        dpdk_link { autoneg: bool }
    };
    assert_eq!(layout_in_rust, layout_in_c());
}

#[test]
fn the_receive_fields_of_an_mbuf_share_its_first_cache_line() {
    assert_eq!(size_of::<ffi::rte_mbuf>(), 128);
    assert!(offset_of!(ffi::rte_mbuf, pool) + size_of::<usize>() <= 64);
}

#[test]
fn an_array_of_buffers_is_an_array_of_pointers() {
    assert_eq!(size_of::<Mbuf>(), size_of::<*mut ffi::rte_mbuf>());
    assert_eq!(size_of::<Option<Mbuf>>(), size_of::<Mbuf>());
    assert_eq!(size_of::<Burst<32>>(), 33 * size_of::<usize>());
}
