-- The tenants. keyhold, which calls them scopes, refers to this table and follows what is deleted and renamed in it.
create table scope (
    id text not null,

    constraint scope_pkey primary key (id)
);
