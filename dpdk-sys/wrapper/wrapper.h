/*
 * What bindgen reads. DPDK's fast path is inline functions and function-like macros, which no
 * binding can call, and its control structures grow with each release. So the shims below are
 * real functions over plain structures of our own: the generated bindings stay small, and the
 * same Rust builds against any DPDK from 22.11 on.
 */
#ifndef RNIC_DPDK_WRAPPER_H
#define RNIC_DPDK_WRAPPER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <rte_alarm.h>
#include <rte_bus_vdev.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_rcu_qsbr.h>
#include <rte_ring.h>

/* Values of macros that bindgen cannot evaluate. */
static const uint64_t DPDK_RX_VLAN = RTE_MBUF_F_RX_VLAN;
static const uint64_t DPDK_RX_VLAN_STRIPPED = RTE_MBUF_F_RX_VLAN_STRIPPED;
static const uint64_t DPDK_RX_OFFLOAD_VLAN_STRIP = RTE_ETH_RX_OFFLOAD_VLAN_STRIP;
static const uint64_t DPDK_RSS_IPV4_UDP = RTE_ETH_RSS_NONFRAG_IPV4_UDP;
static const uint64_t DPDK_RSS_IPV6_UDP = RTE_ETH_RSS_NONFRAG_IPV6_UDP;
static const uint32_t DPDK_LCORE_ID_ANY = LCORE_ID_ANY;
static const int32_t DPDK_SOCKET_ID_ANY = SOCKET_ID_ANY;
static const uint32_t DPDK_RING_SP_SC_EXACT = RING_F_SP_ENQ | RING_F_SC_DEQ | RING_F_EXACT_SZ;
static const uint32_t DPDK_HEADROOM = RTE_PKTMBUF_HEADROOM;
static const uint32_t DPDK_NAME_LEN = RTE_ETH_NAME_MAX_LEN;
static const uint32_t DPDK_MAX_PORTS = RTE_MAX_ETHPORTS;

struct dpdk_port_info {
	const char *driver; /* static string of the driver */
	const char *device; /* name on its bus; lives as long as the device */
	uint64_t rx_offloads;
	uint64_t tx_offloads;
	uint64_t rss_types;
	uint32_t if_index;
	uint32_t max_frame;
	int32_t socket;
	uint16_t min_mtu;
	uint16_t max_mtu;
	uint16_t max_rx_queues;
	uint16_t max_tx_queues;
	uint16_t rx_desc_min;
	uint16_t rx_desc_max;
	uint16_t tx_desc_min;
	uint16_t tx_desc_max;
};

struct dpdk_port_conf {
	uint64_t rx_offloads;
	uint64_t rss_types; /* 0: no RSS */
	uint32_t mtu;
	uint16_t rx_queues;
	uint16_t tx_queues;
};

struct dpdk_link {
	uint32_t speed_mbps;
	bool up;
	bool full_duplex;
	bool autoneg;
};

/* One row of the layout the C compiler sees, for the tests of the generated bindings. */
struct dpdk_layout {
	const char *field; /* "struct" or "struct.field" */
	size_t offset;
	size_t size;
};
const struct dpdk_layout *dpdk_layouts(size_t *count);

/* Process and threads. */
int dpdk_errno(void);
uint32_t dpdk_lcore_id(void);
int dpdk_log_to_stderr(void);

/* Buffers. */
struct rte_mbuf *dpdk_mbuf_alloc(struct rte_mempool *pool);
int dpdk_mbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **bufs, uint32_t n);
void dpdk_mbuf_free(struct rte_mbuf *m);
int dpdk_mbuf_linearise(struct rte_mbuf *m);
int dpdk_mbuf_chain(struct rte_mbuf *head, struct rte_mbuf *tail);
bool dpdk_pool_is_full(const struct rte_mempool *pool);
uint32_t dpdk_ring_dequeue_burst(struct rte_ring *ring, struct rte_mbuf **bufs, uint32_t n);

/* Ports. */
uint16_t dpdk_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **bufs, uint16_t n);
uint16_t dpdk_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **bufs, uint16_t n);
int dpdk_port_info(uint16_t port, struct dpdk_port_info *info);
int dpdk_port_configure(uint16_t port, const struct dpdk_port_conf *conf);
int dpdk_port_link(uint16_t port, struct dpdk_link *link);
int dpdk_port_remove_device(uint16_t port);

/* Devices that vanish by themselves. The callback runs on the interrupt thread. */
int dpdk_removal_register(uint16_t port, rte_eth_dev_cb_fn removed);
int dpdk_removal_unregister(uint16_t port, rte_eth_dev_cb_fn removed);
int dpdk_removal_raise(uint16_t port);

/* DPDK's own quiescent-state reclamation, for comparison in benchmarks. */
void dpdk_qsbr_online(struct rte_rcu_qsbr *v, uint32_t thread);
void dpdk_qsbr_offline(struct rte_rcu_qsbr *v, uint32_t thread);
void dpdk_qsbr_quiescent(struct rte_rcu_qsbr *v, uint32_t thread);
uint64_t dpdk_qsbr_start(struct rte_rcu_qsbr *v);
int dpdk_qsbr_check(struct rte_rcu_qsbr *v, uint64_t token, bool wait);

#endif
