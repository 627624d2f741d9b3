#!/bin/sh
# Reserves hugepages, makes SR-IOV virtual functions, and hands PCI functions to vfio-pci for rnicd.
set -eu

pci=/sys/bus/pci

usage() {
    cat <<'EOF'
usage: vf-setup.sh COMMAND

  hugepages SIZE [NODE]     have SIZE (such as 512MiB, 2GiB) of 2 MiB hugepages, in all or on NUMA node NODE
  vf PF INDEX MAC MTU       bring the interface PF up with MTU, make its virtual functions, give number INDEX
                            (from 0) the address MAC, bind it to vfio-pci, and print its PCI address
  bind ADDRESS              bind the PCI function ADDRESS (such as 0000:01:00.0) to vfio-pci
  unbind ADDRESS            give it back to its kernel driver
  status                    show hugepages, and the functions bound to vfio-pci

All but `status` need root. Settings last until the next boot; deploy/README.md shows how to keep them.
EOF
}

die() {
    printf 'vf-setup.sh: %s\n' "$*" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" -eq 0 ] || die "this needs root"
}

# Prints a size such as 512MiB as a number of MiB.
mebibytes() {
    number=${1%[MG]iB}
    case $number in
        '' | *[!0-9]*) die "\`$1\` is not a size; write 512MiB or 2GiB" ;;
    esac
    case $1 in
        *MiB) echo "$number" ;;
        *GiB) echo "$((number * 1024))" ;;
        *) die "\`$1\` has no unit; write 512MiB or 2GiB" ;;
    esac
}

hugepages() {
    need_root
    mib=$(mebibytes "$1")
    wanted=$(((mib + 1) / 2))
    pool=/sys/kernel/mm/hugepages/hugepages-2048kB
    [ -z "${2-}" ] || pool=/sys/devices/system/node/node$2/hugepages/hugepages-2048kB
    [ -d "$pool" ] || die "there is no pool of 2 MiB hugepages at $pool"
    echo "$wanted" >"$pool/nr_hugepages"
    got=$(cat "$pool/nr_hugepages")
    [ "$got" -ge "$wanted" ] || die "only $got of $wanted hugepages could be had; reserve them at boot: hugepages=$wanted"
    echo "$got hugepages of 2 MiB are reserved"
}

function_folder() {
    folder=$pci/devices/$1
    [ -d "$folder" ] || die "there is no PCI function $1 (write it in full, such as 0000:01:00.0)"
    echo "$folder"
}

current_driver() {
    if [ -e "$1/driver" ]; then
        basename "$(readlink -f "$1/driver")"
    fi
}

bind() {
    need_root
    folder=$(function_folder "$1")
    [ -e "$folder/iommu_group" ] ||
        die "$1 is behind no IOMMU; switch it on in the firmware, and boot with intel_iommu=on or amd_iommu=on"
    for netdev in "$folder"/net/*; do
        [ -e "$netdev" ] || continue
        name=$(basename "$netdev")
        # Losing the interface this login came through would be a bad surprise.
        if [ -n "$(ip route show default dev "$name")" ]; then
            die "$name carries the default route; give it up first"
        fi
    done
    modprobe vfio-pci
    echo vfio-pci >"$folder/driver_override"
    if [ -e "$folder/driver" ] && [ "$(current_driver "$folder")" != vfio-pci ]; then
        echo "$1" >"$folder/driver/unbind"
    fi
    [ -e "$folder/driver" ] || echo "$1" >"$pci/drivers_probe"
    [ "$(current_driver "$folder")" = vfio-pci ] || die "$1 could not be bound to vfio-pci; see dmesg"

    group=$(basename "$(readlink -f "$folder/iommu_group")")
    if getent group rnic >/dev/null && [ -e "/dev/vfio/$group" ]; then
        chgrp rnic "/dev/vfio/$group"
        chmod 0660 "/dev/vfio/$group"
    fi
    echo "$1 is bound to vfio-pci (IOMMU group $group)" >&2
}

unbind() {
    need_root
    folder=$(function_folder "$1")
    echo >"$folder/driver_override"
    if [ -e "$folder/driver" ]; then
        echo "$1" >"$folder/driver/unbind"
    fi
    echo "$1" >"$pci/drivers_probe"
    driver=$(current_driver "$folder")
    echo "$1 is bound to ${driver:-no driver}" >&2
}

vf() {
    need_root
    pf=$1 index=$2 mac=$3 mtu=$4
    case $index in
        '' | *[!0-9]*) die "\`$index\` is not the number of a virtual function" ;;
    esac
    device=/sys/class/net/$pf/device
    [ -e "$device/sriov_totalvfs" ] || die "$pf is not an interface with SR-IOV"
    total=$(cat "$device/sriov_totalvfs")
    [ "$index" -lt "$total" ] || die "$pf has $total virtual functions, numbered from 0"

    # The physical function must be up first: else its VFs get random addresses and no link.
    ip link set dev "$pf" mtu "$mtu" up
    existing=$(cat "$device/sriov_numvfs")
    if [ "$existing" -eq 0 ]; then
        echo "$((index + 1))" >"$device/sriov_numvfs"
    elif [ "$existing" -le "$index" ]; then
        die "$pf has $existing virtual functions already; their number can only be changed by removing all:" \
            "echo 0 >$device/sriov_numvfs"
    fi
    ip link set dev "$pf" vf "$index" mac "$mac"
    address=$(basename "$(readlink -f "$device/virtfn$index")")
    bind "$address"
    echo "$address"
}

status() {
    grep -E '^(HugePages_|Hugepagesize)' /proc/meminfo
    for folder in "$pci"/drivers/vfio-pci/*:*; do
        [ -e "$folder" ] || continue
        group=$(basename "$(readlink -f "$folder/iommu_group")")
        echo "$(basename "$folder") vfio-pci, IOMMU group $group"
    done
}

case "${1-} $#" in
    'hugepages 2' | 'hugepages 3' | 'vf 5' | 'bind 2' | 'unbind 2' | 'status 1')
        "$@"
        ;;
    '-h 1' | '--help 1' | 'help 1') usage ;;
    *)
        usage >&2
        exit 2
        ;;
esac
