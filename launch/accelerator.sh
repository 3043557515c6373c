#!/usr/bin/env bash
# Prints what jax is to be installed for on this machine: cpu, cuda12, cuda13 or tpu.
# usage: accelerator.sh [ROOT]     ROOT/dev, ROOT/proc and ROOT/sys are looked at; / unless given
set -euo pipefail
root="${1:-}"

# https://docs.jax.dev/en/latest/installation.html: the drivers, and for CUDA 13 the GPUs, it needs.
cuda12_driver=525
cuda13_driver=580
cuda13_capability=75 # 7.5, Turing

# Google's PCI devices that are TPUs: v3, v4, v5p, v5e, v6e, 7x and one without a public name
# (jax/_src/hardware_utils.py); 0x1ae0 is also the vendor of Google Cloud's network cards.
tpu_vendor=0x1ae0
tpu_devices=" 0x0027 0x0056 0x005e 0x0062 0x0063 0x006f 0x0076 "

has_tpu() {
    local device vendor
    for vendor in "$root"/sys/bus/pci/devices/*/vendor; do
        device="${vendor%vendor}device"
        [[ -r "$vendor" && -r "$device" && "$(<"$vendor")" == "$tpu_vendor" ]] || continue
        [[ "$tpu_devices" != *" $(<"$device") "* ]] || return 0
    done
    # TPU VMs up to v4. (Other makers' chips are in the folder /dev/accel.)
    [[ -e "$root/dev/accel0" ]]
}

# The driver's major version, and the compute capability of the oldest GPU, 90 for 9.0, where
# nvidia-smi says it; nothing without a driver.
nvidia() {
    local found
    found="$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null |
        sed -nE 's/^([0-9]+)\.[0-9.]+, *([0-9]+)\.([0-9]+).*$/\1 \2\3/p' | sort -n -k2 | head -n 1)" ||
        found=""
    if [[ -z "$found" && -r "$root/proc/driver/nvidia/version" ]]; then
        found="$(sed -nE 's/^NVRM version:.* Module( for [a-z0-9_]+)? +([0-9]+)\..*$/\2/p' \
            "$root/proc/driver/nvidia/version")"
    fi
    echo "$found"
}

if has_tpu; then
    echo tpu
    exit
fi
read -r driver capability <<<"$(nvidia)"
if [[ -z "$driver" ]]; then
    echo cpu
elif ((driver < cuda12_driver)); then
    echo "The NVIDIA driver is version $driver, and jax needs $cuda12_driver or newer: installing" \
        "for the CPU. Update the driver and run this again." >&2
    echo cpu
elif ((driver >= cuda13_driver && ${capability:-0} >= cuda13_capability)); then
    echo cuda13
else
    echo cuda12
fi
