-- What tenants' identity providers know us by. A tenant is not deleted while it has any of it: no cascade there.
create table oidc (
    scope_id text not null,
    client_id text not null,
    client_secret bytea not null, -- sealed; 42 bytes longer than the secret
    key_id text not null,         -- of the key version that sealed it

    constraint oidc_pkey primary key (scope_id, client_id),
    constraint oidc_scope_id_fkey foreign key (scope_id) references scope (id) on update cascade,
    -- A key version in use is not deleted.
    constraint oidc_key_id_fkey foreign key (key_id) references kms_data_key_version (private_id) on delete restrict
);

-- Without it, deleting a key version would read the whole table.
create index oidc_key_id_idx on oidc (key_id);
