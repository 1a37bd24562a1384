//! How Wasmer makes memories, tables and stacks for guests.
//!
//! Invariant: a guest's memory comes from the pool and obeys the grant in force; its tables can't outgrow the grant.

// `Tunables` is a trait of unsafe functions: their pointers point into the instance being made.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use wasmer::sys::Tunables;
use wasmer_types::{MemoryError, MemoryStyle, MemoryType, TableStyle, TableType};
use wasmer_vm::{VMConfig, VMMemory, VMMemoryDefinition, VMTable, VMTableDefinition};

use super::memory::{PooledMemory, granted_table_elements};

/// Of one run, whose stack has these bytes (see `stack.rs`).
pub struct GuestTunables {
    vm: VMConfig,
}

impl GuestTunables {
    pub fn new(stack_bytes: u64) -> GuestTunables {
        GuestTunables { vm: VMConfig { wasm_stack_size: usize::try_from(stack_bytes).ok() } }
    }
}

impl Tunables for GuestTunables {
    fn memory_style(&self, _memory: &MemoryType) -> MemoryStyle {
        MemoryStyle::Static
    }

    fn table_style(&self, _table: &TableType) -> TableStyle {
        TableStyle::CallerChecksSignature
    }

    fn create_host_memory(&self, _ty: &MemoryType, _style: &MemoryStyle) -> Result<VMMemory, MemoryError> {
        Err(MemoryError::UnsupportedOperation { message: "the host lends no memories".into() })
    }

    unsafe fn create_vm_memory(
        &self,
        ty: &MemoryType,
        _style: &MemoryStyle,
        definition: NonNull<VMMemoryDefinition>,
    ) -> Result<VMMemory, MemoryError> {
        // SAFETY: the caller's contract is `PooledMemory::create`'s.
        let memory = unsafe { PooledMemory::create(ty, definition)? };
        Ok(VMMemory(Box::new(memory)))
    }

    fn create_host_table(&self, _ty: &TableType, _style: &TableStyle) -> Result<VMTable, String> {
        Err("the host lends no tables".into())
    }

    unsafe fn create_vm_table(
        &self,
        ty: &TableType,
        style: &TableStyle,
        definition: NonNull<VMTableDefinition>,
    ) -> Result<VMTable, String> {
        let limit = granted_table_elements().ok_or("no grant is in force")?;
        if ty.minimum > limit {
            return Err(format!("the table's minimum of {} elements is over the limit of {limit}", ty.minimum));
        }
        let capped = TableType { maximum: Some(ty.maximum.map_or(limit, |max| max.min(limit))), ..*ty };
        // SAFETY: the caller's contract is passed on.
        unsafe { VMTable::from_definition(&capped, style, definition) }
    }

    fn vmconfig(&self) -> &VMConfig {
        &self.vm
    }
}
