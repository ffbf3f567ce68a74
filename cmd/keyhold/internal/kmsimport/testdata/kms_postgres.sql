--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: kms_private_id; Type: DOMAIN; Schema: public; Owner: -
--

CREATE DOMAIN public.kms_private_id AS text NOT NULL
	CONSTRAINT kms_private_id_check CHECK ((length(TRIM(BOTH FROM VALUE)) > 0));


--
-- Name: DOMAIN kms_private_id; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON DOMAIN public.kms_private_id IS 'standard column for private id';


--
-- Name: kms_scope_id; Type: DOMAIN; Schema: public; Owner: -
--

CREATE DOMAIN public.kms_scope_id AS text
	CONSTRAINT kms_scope_id_check CHECK ((length(TRIM(BOTH FROM VALUE)) > 0));


--
-- Name: DOMAIN kms_scope_id; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON DOMAIN public.kms_scope_id IS 'standard column for scope id';


--
-- Name: kms_timestamp; Type: DOMAIN; Schema: public; Owner: -
--

CREATE DOMAIN public.kms_timestamp AS timestamp with time zone DEFAULT CURRENT_TIMESTAMP;


--
-- Name: DOMAIN kms_timestamp; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON DOMAIN public.kms_timestamp IS 'Standard timestamp for all create_time and update_time columns';


--
-- Name: kms_version; Type: DOMAIN; Schema: public; Owner: -
--

CREATE DOMAIN public.kms_version AS bigint NOT NULL DEFAULT 1
	CONSTRAINT kms_version_check CHECK ((VALUE > 0));


--
-- Name: DOMAIN kms_version; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON DOMAIN public.kms_version IS 'standard column for row version';


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: kms_collection_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.kms_collection_version (
    version public.kms_version,
    create_time timestamp without time zone DEFAULT CURRENT_TIMESTAMP NOT NULL,
    update_time timestamp without time zone DEFAULT CURRENT_TIMESTAMP NOT NULL
);


--
-- Name: kms_data_key; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.kms_data_key (
    private_id public.kms_private_id NOT NULL,
    root_key_id public.kms_private_id NOT NULL,
    purpose text NOT NULL,
    create_time public.kms_timestamp,
    CONSTRAINT not_start_end_whitespace_purpose CHECK ((length(TRIM(BOTH FROM purpose)) = length(purpose)))
);


--
-- Name: TABLE kms_data_key; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.kms_data_key IS 'kms_data_key_version contains versions of a kms_data_key (dek aka data keys)';


--
-- Name: kms_data_key_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.kms_data_key_version (
    private_id public.kms_private_id NOT NULL,
    data_key_id public.kms_private_id NOT NULL,
    root_key_version_id public.kms_private_id NOT NULL,
    version public.kms_version,
    key bytea NOT NULL,
    create_time public.kms_timestamp,
    CONSTRAINT not_empty_key CHECK ((length(key) > 0))
);


--
-- Name: kms_root_key; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.kms_root_key (
    private_id public.kms_private_id NOT NULL,
    scope_id public.kms_scope_id NOT NULL,
    create_time public.kms_timestamp
);


--
-- Name: TABLE kms_root_key; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.kms_root_key IS 'kms_root_key defines a root key for a scope';


--
-- Name: kms_root_key_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.kms_root_key_version (
    private_id public.kms_private_id NOT NULL,
    root_key_id public.kms_private_id NOT NULL,
    version public.kms_version,
    key bytea NOT NULL,
    create_time public.kms_timestamp,
    CONSTRAINT not_empty_key CHECK ((length(key) > 0))
);


--
-- Name: TABLE kms_root_key_version; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.kms_root_key_version IS 'kms_root_key_version contains versions of a kms_root_key';


--
-- Name: kms_schema_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.kms_schema_version (
    version text NOT NULL,
    create_time public.kms_timestamp,
    update_time public.kms_timestamp
);


--
-- Name: TABLE kms_schema_version; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON TABLE public.kms_schema_version IS 'kms_schema_version contains the kms schema version';


--
-- Name: oidc; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.oidc (
    private_id text NOT NULL,
    scope_id text NOT NULL,
    client_id text NOT NULL,
    client_secret bytea NOT NULL,
    key_version_id text NOT NULL
);


--
-- Name: scope; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.scope (
    private_id text NOT NULL
);


--
-- Data for Name: kms_collection_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.kms_collection_version (version, create_time, update_time) VALUES ('13', '2026-11-22 04:06:26.961965', '2026-11-22 04:06:27.099362');


--
-- Data for Name: kms_data_key; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_qtojwIfD1d', 'krk_tfiUswsFQX', 'client-secrets', '2026-11-22 04:06:26.972742+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_6Xpu9UXvbb', 'krk_tfiUswsFQX', 'sessions', '2026-11-22 04:06:26.972742+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_uyh1D0EZCt', 'krk_tfiUswsFQX', 'database', '2026-11-22 04:06:26.972742+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_6CAJV291Jl', 'krk_UslobwCw1s', 'client-secrets', '2026-11-22 04:06:27.001401+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_xNTyP51ZKD', 'krk_UslobwCw1s', 'sessions', '2026-11-22 04:06:27.001401+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_49Uayx17zH', 'krk_UslobwCw1s', 'database', '2026-11-22 04:06:27.001401+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_FZO4e6AVw9', 'krk_SBkybI26yJ', 'client-secrets', '2026-11-22 04:06:27.038856+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_P8nRSPHKlU', 'krk_SBkybI26yJ', 'sessions', '2026-11-22 04:06:27.038856+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_Rg6qp6hKff', 'krk_SBkybI26yJ', 'database', '2026-11-22 04:06:27.038856+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_vWctUveifL', 'krk_ww6bCnuxq3', 'client-secrets', '2026-11-22 04:06:27.082631+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_hJwGgBNTeO', 'krk_ww6bCnuxq3', 'sessions', '2026-11-22 04:06:27.082631+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_0nz9TBecr8', 'krk_ww6bCnuxq3', 'database', '2026-11-22 04:06:27.082631+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_JLDpoM3h6O', 'krk_Z9cIbkJ6OL', 'client-secrets', '2026-11-22 04:06:27.092247+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_cb0O6aTpOY', 'krk_Z9cIbkJ6OL', 'sessions', '2026-11-22 04:06:27.092247+00');
INSERT INTO public.kms_data_key (private_id, root_key_id, purpose, create_time) VALUES ('kdk_FWM9MZ16FV', 'krk_Z9cIbkJ6OL', 'database', '2026-11-22 04:06:27.092247+00');


--
-- Data for Name: kms_data_key_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_uSaQKi03GM', 'kdk_qtojwIfD1d', 'krkv_ZSzrItxCPd', '1', '\x0a3c187d01d84a9296368f3dd33cb7ca6cec95a00f0b6e3d595c3b59b82959f1774d08a371a77ea992610088eac9b1cebefcbae70c7cf2d452cd76e417e52a111a0f6b726b765f5a537a72497478435064', '2026-11-22 04:06:26.972742+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_wCCVxssmpK', 'kdk_6Xpu9UXvbb', 'krkv_ZSzrItxCPd', '1', '\x0a3c90db2e96ece3d33448f3aa60c8d643687a7d0f1668bb83f91bed512e0c37357df948b0d0defc2d4e1f403308a999ce3a107f0f5b6d430b205dc5db4b2a111a0f6b726b765f5a537a72497478435064', '2026-11-22 04:06:26.972742+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_YY5VgcwTO0', 'kdk_uyh1D0EZCt', 'krkv_ZSzrItxCPd', '1', '\x0a3c80ad748d09cd55c48fc351e78aeb577a148358415cfcb0f821d5cbaa91f371899cae823a39dfc78773c35603abe973ba86d5aa47afdb04d116cb6eda2a111a0f6b726b765f5a537a72497478435064', '2026-11-22 04:06:26.972742+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_pX946bDdGX', 'kdk_qtojwIfD1d', 'krkv_DlmoTkzEfu', '2', '\x0a3c3152b12eac44525c846ccd1d7c3dbdef293a03b7e2198df91b319744f5d107712e1010c8edb13d66dd17d6ea44d132927631e089f61bbf038c0e61cb2a111a0f6b726b765f446c6d6f546b7a456675', '2026-11-22 04:06:26.989482+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_6NY5d7cS7v', 'kdk_6Xpu9UXvbb', 'krkv_DlmoTkzEfu', '2', '\x0a3c49b9d13255227c0dc8d1abe906346c84159dfaac555f9e4af3ca259c563a38d9c7dd787457e7ebc28b9fcd4494dee22048932579bc184e159fc384b72a111a0f6b726b765f446c6d6f546b7a456675', '2026-11-22 04:06:26.989482+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_VqIFpFiz4l', 'kdk_uyh1D0EZCt', 'krkv_DlmoTkzEfu', '2', '\x0a3cbe1391e58c5999847052e20eeed1609e6bed9196acf069b1f88008959523019fb1f7a6b34bb7951a36ddfd09270f4672e12ad46037a626835acdc7462a111a0f6b726b765f446c6d6f546b7a456675', '2026-11-22 04:06:26.989482+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_OoUIPHw1Nl', 'kdk_6CAJV291Jl', 'krkv_UyIYieG9by', '1', '\x0a3c754d220f18622932b715e5641850070bc3a2f22b27848a0f1d955e62baccbc24d1707bfca4a0479219d0bfde2721901b06aaf84d90489f4cf6fea1392a111a0f6b726b765f55794959696547396279', '2026-11-22 04:06:27.001401+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_6Q2n6ea3u3', 'kdk_6CAJV291Jl', 'krkv_UyIYieG9by', '2', '\x0a3c02c2a89985fea0ea262293424ba5411bf73c5602a89f7ce63c3c953fff8c187722fc1d9c090412b8784285a893a02e48bbcb4188925011b47f98ff422a111a0f6b726b765f55794959696547396279', '2026-11-22 04:06:27.010397+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_2os8XecgLw', 'kdk_xNTyP51ZKD', 'krkv_UyIYieG9by', '1', '\x0a3c08189c50b070ed67256b293c3b5d043e33deae8ab75c74e546871e70db5afa9aa2ffc6d7956c518497039b20970102a37acddbc1cf5e323e506735172a111a0f6b726b765f55794959696547396279', '2026-11-22 04:06:27.001401+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_YreAoOYp8Q', 'kdk_xNTyP51ZKD', 'krkv_UyIYieG9by', '2', '\x0a3c3327482595e4d33ca04627bdd10d90fc7e1c7ed295b65de77e65408fd9bd2601e88908c311c867dfc1ec06b978cddf374a5cddfd6063abbbac9825df2a111a0f6b726b765f55794959696547396279', '2026-11-22 04:06:27.010397+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_aYWjZxda1D', 'kdk_49Uayx17zH', 'krkv_UyIYieG9by', '1', '\x0a3cf47d0912f7cfb78cbca8af234d29c0024512134fe2db0d3ebbeb987adb3d309409a1f6da7f435ac04dcf4801e3df1cd7352e4b699d0a158168adb6aa2a111a0f6b726b765f55794959696547396279', '2026-11-22 04:06:27.001401+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_8qXKCbpMTU', 'kdk_49Uayx17zH', 'krkv_UyIYieG9by', '2', '\x0a3cc547961698406c00bc9159a2c78c45bfb1040e9d5d63a245e99a240e93f1ea53a07a8aec22851a1a4bb5dd5111699de0e868f0173d864092b3fd91fd2a111a0f6b726b765f55794959696547396279', '2026-11-22 04:06:27.010397+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_n4CXnyzSwd', 'kdk_6CAJV291Jl', 'krkv_UyIYieG9by', '3', '\x0a3c78706381dba5cbebc2df642af7cc676d8891aade0d2d1b821d98ddf0216cd41b5bf213ceb59494847dcd329666c9051af73513a9dd527f2c3c13dd452a111a0f6b726b765f55794959696547396279', '2026-11-22 04:06:27.018581+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_oNKOlIVHXv', 'kdk_xNTyP51ZKD', 'krkv_UyIYieG9by', '3', '\x0a3c25a3dcd68a3e4c606db18a7aa41abc618ebe403cea7fb6b55932d9cdb4ce0cd59f948c28f25d76c4a17d30f9e3155eec237a8f93b70e12aca824c2232a111a0f6b726b765f55794959696547396279', '2026-11-22 04:06:27.018581+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_02iUBE9rVw', 'kdk_49Uayx17zH', 'krkv_UyIYieG9by', '3', '\x0a3cecdfbcd3e98c1441c972f0e44b9a2394eec82189fd2abadf60d95986d5c1442a19aedc394414aede6cdfd2715bd41195c4f35ff4056fa95e2b081cb62a111a0f6b726b765f55794959696547396279', '2026-11-22 04:06:27.018581+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_JtuowcpAQP', 'kdk_FZO4e6AVw9', 'krkv_llZ761nk0z', '1', '\x0a3caa54b75a01311f64f2f93ab8bc188c3a34d825b08965c43c3754ecc170320144afa5f5b27e3ab441646f829ec273f91cab39aab6426cedd61536579c2a111a0f6b726b765f6c6c5a3736316e6b307a', '2026-11-22 04:06:27.038856+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_v9vMCIyT1L', 'kdk_FZO4e6AVw9', 'krkv_llZ761nk0z', '2', '\x0a3ca43a7e6793486720e97f3800ea4d9511bf530201abe06abf1f7ecd4cb713cb96807a88e159f96af8381e00dbeb56c62b879e6125f6b538eef04fb53f2a111a0f6b726b765f6c6c5a3736316e6b307a', '2026-11-22 04:06:27.048404+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_XdHaTWrZPN', 'kdk_P8nRSPHKlU', 'krkv_llZ761nk0z', '1', '\x0a3c992f18231ed3f68513aa0c780e91af28e2ee47cba13ba2e9baf99a4f2615a07e4552e7b8e557f3a452d5a04a827fb840cd0467e0caa760c3a0e14b952a111a0f6b726b765f6c6c5a3736316e6b307a', '2026-11-22 04:06:27.038856+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_Ey8Tj8S4sy', 'kdk_P8nRSPHKlU', 'krkv_llZ761nk0z', '2', '\x0a3cb4a24678299358a035abe8ed03c1a5a5a7d8a9752febeaa00293e2ded6f7c7e3270a33967f826b001b57c44638994655e0afbf59708cf09ba69e3b6f2a111a0f6b726b765f6c6c5a3736316e6b307a', '2026-11-22 04:06:27.048404+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_2U3YAULzKP', 'kdk_Rg6qp6hKff', 'krkv_llZ761nk0z', '1', '\x0a3c1b47f241e20e25ebc3ccea17fb220014aab100ebb5327a96d0becb15bf3e55026d8eddfc803e4c547572627e11ae3ef28b4cfce708cbec8840fb7f572a111a0f6b726b765f6c6c5a3736316e6b307a', '2026-11-22 04:06:27.038856+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_YAOIN0tih8', 'kdk_Rg6qp6hKff', 'krkv_llZ761nk0z', '2', '\x0a3cc70fc8e9c15189ad7f0c557e0f93be14f806cccf1b80b6494daa51a2c51918a77e80f4399da379276faeb25230e6340f484bfb5094cb5eaecea3b90b2a111a0f6b726b765f6c6c5a3736316e6b307a', '2026-11-22 04:06:27.048404+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_TjL2biHF82', 'kdk_FZO4e6AVw9', 'krkv_llZ761nk0z', '3', '\x0a3cf89bf2839f1328644c05c2e2dcda9de3b67d06410139cc101c1d4d4276f15f2c1b23caf704bc38baacbeda7f1c93594bb63af3b1031980baaa7878f22a111a0f6b726b765f6c6c5a3736316e6b307a', '2026-11-22 04:06:27.056531+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_RRHYJqtKxc', 'kdk_P8nRSPHKlU', 'krkv_llZ761nk0z', '3', '\x0a3c61a485f08453fc489d063a7d2438e4308298a52dd9e7a249ec328b2c0524c9cfad27f364ea6cb28f403e8b53297f93a0a19d05e8facdaf910d9661192a111a0f6b726b765f6c6c5a3736316e6b307a', '2026-11-22 04:06:27.056531+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_yfLFpupb7A', 'kdk_Rg6qp6hKff', 'krkv_llZ761nk0z', '3', '\x0a3c022503b54eed41e38c56414913ec8c2a175b1a76af314cac4d806ecd166ab974dcdd3d194744ec2ef5d0b1a64e736715ab7dbee462c6d5bdef77feba2a111a0f6b726b765f6c6c5a3736316e6b307a', '2026-11-22 04:06:27.056531+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_09p9DAOk63', 'kdk_FZO4e6AVw9', 'krkv_cFfRu0MPi6', '4', '\x0a3c31395bfd3162cf9739875b910fdd0ee0ea1d71a9dea63b01a1335708490382976d94d1c6974b04d88141606f4c9d1ebfa5f704dbafb6cbac5ad5ac0e2a111a0f6b726b765f6346665275304d506936', '2026-11-22 04:06:27.071064+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_QHCYscwyhu', 'kdk_P8nRSPHKlU', 'krkv_cFfRu0MPi6', '4', '\x0a3c521d362f68e8cadbc8b7449def51e4d9951baa6670acd96e7a491e92efff4ff7889fddb72ebe7c815df8bd28378bc464b4f9479e671f43a2962117062a111a0f6b726b765f6346665275304d506936', '2026-11-22 04:06:27.071064+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_4N2c8PqwpO', 'kdk_Rg6qp6hKff', 'krkv_cFfRu0MPi6', '4', '\x0a3ce15be4d162d84492adba2b9446c9da7b222b900e715afa4b70dbf27702dd994fd6480f58fde1767b553aed69b9dab88ac76f68d8d0f934163499c8b92a111a0f6b726b765f6346665275304d506936', '2026-11-22 04:06:27.071064+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_zxaCb8Ow06', 'kdk_vWctUveifL', 'krkv_IQLtTTsTwE', '1', '\x0a3c82d951a1efdbc3bff9e6fbbcaab08bd554019181badb80acecf40befb6855b62c1837fc93ae27d4c45ba1d1c7dc3ce4531b110923e43b180b11fd1c92a111a0f6b726b765f49514c74545473547745', '2026-11-22 04:06:27.082631+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_TEXjNDp4e6', 'kdk_hJwGgBNTeO', 'krkv_IQLtTTsTwE', '1', '\x0a3c17d6c8658612cd56f442e60b8bde51f0608801cb25bfcf746f6bc69a26a0136faf0b535056b227509e7cf1f2cb342dd9dc11aa20b97bdfb5bacb0c832a111a0f6b726b765f49514c74545473547745', '2026-11-22 04:06:27.082631+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_46M0a9kR2j', 'kdk_0nz9TBecr8', 'krkv_IQLtTTsTwE', '1', '\x0a3cf087a1aa4a121ffdf622182d9623fbd9007aa31963fd89885ab072cb6a284152ec77a7f6d6b3d79e1f809f00667d2558a67f7efb98932321b206e91f2a111a0f6b726b765f49514c74545473547745', '2026-11-22 04:06:27.082631+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_NiC7EFUtLz', 'kdk_JLDpoM3h6O', 'krkv_xf4ErCx3sF', '1', '\x0a3c5703a18a1d83582eead420f4bc9ba4773bb3b5099e43e93d1983cb41b50ef7353ad9809dbe32e70d282071b007087aefae80f5847e446ba12467bc982a111a0f6b726b765f78663445724378337346', '2026-11-22 04:06:27.092247+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_ldp4fm8QaW', 'kdk_cb0O6aTpOY', 'krkv_xf4ErCx3sF', '1', '\x0a3ce6495ec4f0d089f27aa45febb6734966ddc97fd29bd158df6aefc3a90e942f0b63f028bf61aa1777501b9a1203fe8950d54610ee5b89dfa69c6e373d2a111a0f6b726b765f78663445724378337346', '2026-11-22 04:06:27.092247+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_Xp7ssrGitq', 'kdk_FWM9MZ16FV', 'krkv_xf4ErCx3sF', '1', '\x0a3c6be74fb79701d49a71f35d21fe51414219339debc691ac4dea40c0cf3a5eaf8c33e127fe1142b02399dc4d19f14016fe6d7964afdb446fc55ead452f2a111a0f6b726b765f78663445724378337346', '2026-11-22 04:06:27.092247+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_fSMjLFbh0a', 'kdk_JLDpoM3h6O', 'krkv_C5qSmbZ7Ia', '2', '\x0a3c2b01ca76a48c77e6934460dca2eec2594371404d74a87103fd81cc578fa4c71ffa7a0673d479b422197e99e2d41a613a556400449bce9b0dc15014732a111a0f6b726b765f433571536d625a374961', '2026-11-22 04:06:27.099362+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_Ljo8P2jWPT', 'kdk_cb0O6aTpOY', 'krkv_C5qSmbZ7Ia', '2', '\x0a3c8d4589d6bede8d45553bc7ac9c4bc43b05ba8efbd91976cd59ba8a475ead33be4b150e52c013466611ebc1517ff8493d123a2b86ed06b586b0f7ee772a111a0f6b726b765f433571536d625a374961', '2026-11-22 04:06:27.099362+00');
INSERT INTO public.kms_data_key_version (private_id, data_key_id, root_key_version_id, version, key, create_time) VALUES ('kdkv_nFgPFi312I', 'kdk_FWM9MZ16FV', 'krkv_C5qSmbZ7Ia', '2', '\x0a3cd7ac709a1b59cd12386ef0cf5f6ab49a07c09a3140aa74e9cefc7df24d921fabf0507d677921e959cd5f9728d99f808eaed56bd61b0018ec801f09252a111a0f6b726b765f433571536d625a374961', '2026-11-22 04:06:27.099362+00');


--
-- Data for Name: kms_root_key; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.kms_root_key (private_id, scope_id, create_time) VALUES ('krk_tfiUswsFQX', 'global', '2026-11-22 04:06:26.972742+00');
INSERT INTO public.kms_root_key (private_id, scope_id, create_time) VALUES ('krk_UslobwCw1s', 'org_apg_2', '2026-11-22 04:06:27.001401+00');
INSERT INTO public.kms_root_key (private_id, scope_id, create_time) VALUES ('krk_SBkybI26yJ', 'org_apg_3', '2026-11-22 04:06:27.038856+00');
INSERT INTO public.kms_root_key (private_id, scope_id, create_time) VALUES ('krk_ww6bCnuxq3', 'org_apg_4', '2026-11-22 04:06:27.082631+00');
INSERT INTO public.kms_root_key (private_id, scope_id, create_time) VALUES ('krk_Z9cIbkJ6OL', 'org_apg_5', '2026-11-22 04:06:27.092247+00');


--
-- Data for Name: kms_root_key_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.kms_root_key_version (private_id, root_key_id, version, key, create_time) VALUES ('krkv_ZSzrItxCPd', 'krk_tfiUswsFQX', '1', '\x0a3cfa1b7155e5d01bb7699249987e382dc0958643ef5af428af406ddfc7172898b87b83886a5a68fd8806a0041a16c8ba19dfbab51cd5e21097c864c1022a0a1a08726f6f742d617067', '2026-11-22 04:06:26.972742+00');
INSERT INTO public.kms_root_key_version (private_id, root_key_id, version, key, create_time) VALUES ('krkv_DlmoTkzEfu', 'krk_tfiUswsFQX', '2', '\x0a3cb7f5ce6071793161c9766ac551a72def22ab3a19b602b6bd0afa04ccd02d2480715ed85648f21f79bf9134cf1a309094ce9bf50eb1137f0e8e8a21982a0a1a08726f6f742d617067', '2026-11-22 04:06:26.989482+00');
INSERT INTO public.kms_root_key_version (private_id, root_key_id, version, key, create_time) VALUES ('krkv_Z2NKLvbtlk', 'krk_UslobwCw1s', '1', '\x0a3ca19722c6321d61737ba514693cdfa9e9a6cbd0e56abf036bd9be9d31c37174c078414fd326d69f652217da4c1ad39d438148c5a58a5c2e52abef3f0d2a0a1a08726f6f742d617067', '2026-11-22 04:06:27.001401+00');
INSERT INTO public.kms_root_key_version (private_id, root_key_id, version, key, create_time) VALUES ('krkv_JhReF8WxbT', 'krk_UslobwCw1s', '2', '\x0a3cdc6aa19309b70bbd80e131c3acf89c199a22eace07595dfc1ce5edd7aa0a1746a06ee82fc0c79566747ef65b5ee088732aff7b2039d4b43483c9a37e2a0a1a08726f6f742d617067', '2026-11-22 04:06:27.010397+00');
INSERT INTO public.kms_root_key_version (private_id, root_key_id, version, key, create_time) VALUES ('krkv_UyIYieG9by', 'krk_UslobwCw1s', '3', '\x0a3c339f9159c2f8ab8a954af1055a31e929c0ecb57e53a68bb36ddda7cc94ef9f28733c3e4f8b3b12eb0ecc7119c969112e98c2476e1b06d837775a9e2e2a0a1a08726f6f742d617067', '2026-11-22 04:06:27.018581+00');
INSERT INTO public.kms_root_key_version (private_id, root_key_id, version, key, create_time) VALUES ('krkv_1mM8EsL1Yy', 'krk_SBkybI26yJ', '1', '\x0a3c11cda9e18e1cb85007cf66e393bcaed1ea8702f7944ed7a8ed0d5a06ba4fbc5ea80c807fcb1f16323482ade653ac9bc179b89066c39d5f633e9156a52a0a1a08726f6f742d617067', '2026-11-22 04:06:27.038856+00');
INSERT INTO public.kms_root_key_version (private_id, root_key_id, version, key, create_time) VALUES ('krkv_DJj2Ipv8GT', 'krk_SBkybI26yJ', '2', '\x0a3cb7fbfb19bac6ac10963ad3b5f5e794d6c00c21abc3cab3a39098de020e76255c770aea0a05c3d8b1bf37d47b82f06c9beb99c1f5368155b1cc16cb5d2a0a1a08726f6f742d617067', '2026-11-22 04:06:27.048404+00');
INSERT INTO public.kms_root_key_version (private_id, root_key_id, version, key, create_time) VALUES ('krkv_llZ761nk0z', 'krk_SBkybI26yJ', '3', '\x0a3c9d2a899488272c75f6fb1594fa363ef0ebe2f7203c312a0f4a72efe8a54b0a95b3fa4609bb9a970a55d2409987b4af7c6f22d81390fc96caae3deae72a0a1a08726f6f742d617067', '2026-11-22 04:06:27.056531+00');
INSERT INTO public.kms_root_key_version (private_id, root_key_id, version, key, create_time) VALUES ('krkv_cFfRu0MPi6', 'krk_SBkybI26yJ', '4', '\x0a3ca7740aaf7216fe1131386acfd12f3372e538f435f110e0e77c8dd64fdd4dfa9f820e7fb4ab42a0881af217328390ed311bca1ebebb05f13fe65323582a0a1a08726f6f742d617067', '2026-11-22 04:06:27.071064+00');
INSERT INTO public.kms_root_key_version (private_id, root_key_id, version, key, create_time) VALUES ('krkv_IQLtTTsTwE', 'krk_ww6bCnuxq3', '1', '\x0a3c0205cd3d1df0dcf161138dea5d58b4d47bdd62168ce7b3fd05915b9a3127c5240e375ebc0e00f440d5c6421b1a7d16e88ed6fbc0319130b1f13ff8942a0a1a08726f6f742d617067', '2026-11-22 04:06:27.082631+00');
INSERT INTO public.kms_root_key_version (private_id, root_key_id, version, key, create_time) VALUES ('krkv_xf4ErCx3sF', 'krk_Z9cIbkJ6OL', '1', '\x0a3c5244772fdebea75d6d629ca906228f9aa0ab0f2638b0bb375512ba77448eb18585adea5079406bbae3ead15aff22091fb662e67719c4ce1a6bf651062a0a1a08726f6f742d617067', '2026-11-22 04:06:27.092247+00');
INSERT INTO public.kms_root_key_version (private_id, root_key_id, version, key, create_time) VALUES ('krkv_C5qSmbZ7Ia', 'krk_Z9cIbkJ6OL', '2', '\x0a3ceabc66052e351d69bca3c053d89df5a9d0da3a61fab93fb07faf532bc393e906a03b56b5302fa5df086a38a6b9b1ac173b2418d945122c16c706cd302a0a1a08726f6f742d617067', '2026-11-22 04:06:27.099362+00');


--
-- Data for Name: kms_schema_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.kms_schema_version (version, create_time, update_time) VALUES ('v0.0.2', '2026-11-22 04:06:26.943964+00', '2026-11-22 04:06:26.961965+00');


--
-- Data for Name: oidc; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0001', 'global', 'client-oidc_0001', '\x0a41c3c931729f6c93277e10f59035816e3b661d649edfd03c6be5f222ddf3c3d76238d1dc662fc9c146f5486e65cce7c8ab37f5c9eb27f33e9341cb416211d6f5dfe72a111a0f6b646b765f755361514b693033474d', 'kdkv_uSaQKi03GM');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0002', 'global', 'client-oidc_0002', '\x0a3b79a05b4c929f65e4350004a5d99a4406af8e7370c29419664ace0dde450e51385dd293d960dc576b8230df827708da156193d2f5043293938c9cd72a111a0f6b646b765f774343567873736d704b', 'kdkv_wCCVxssmpK');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0003', 'global', 'client-oidc_0003', '\x0a418a66b3137f1adaa46b8413dde2f216194475168738acdfd61f6155f44857ddfec85056efa88b47d85a63ec05f74269e1210e562b51a9aa3cd955ea2d6b8a5c4ac92a111a0f6b646b765f70583934366244644758', 'kdkv_pX946bDdGX');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0004', 'global', 'client-oidc_0004', '\x0a3be6e9fda9059afca9f54798a26ef580018e9c4454729253d44d089080bbd89871136aa6105314beeb15c5e9ffdbaca13cce2b11d3989a86d40341742a111a0f6b646b765f567149467046697a346c', 'kdkv_VqIFpFiz4l');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0005', 'org_apg_2', 'client-oidc_0005', '\x0a4414fab853edcc313bfc3ffc03d447952232ed0c2cf5db671bffd51fa2d2ac8d33dcf225897000060da48ed31429310c1ecfae824e53d1ea02dfec51b5f5d367fd9db94b6b2a111a0f6b646b765f4f6f5549504877314e6c', 'kdkv_OoUIPHw1Nl');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0006', 'org_apg_2', 'client-oidc_0006', '\x0a3e8e13cd22c4aab8e7d6f6df3353c929ee4d9b54bf5e76401cc08ed8a6f4fe912f1c48f49c304475ebf050478c3cdf3956efa9fb98abc11d40e4293beff73f2a111a0f6b646b765f326f7338586563674c77', 'kdkv_2os8XecgLw');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0007', 'org_apg_2', 'client-oidc_0007', '\x0a447a38b4d31d3b128825c57031a80fefdc830a465643b8daf6aed19593efd50c51c7c0ba08ade91c607f20d5740abf4f27d00588b730b2a0166eea0ace774e5f4005dd032f2a111a0f6b646b765f3651326e366561337533', 'kdkv_6Q2n6ea3u3');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0008', 'org_apg_2', 'client-oidc_0008', '\x0a3ecbaf7df96560ba111e6534b707c29dc995968a047607c7d22bb2601a7979851dfc4c32ae607e3bab284f80a9853a730c1becb9676f1a3ee1185eddb2091d2a111a0f6b646b765f3871584b4362704d5455', 'kdkv_8qXKCbpMTU');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0009', 'org_apg_2', 'client-oidc_0009', '\x0a449e104333c3ee399ea8bf2471f9eab7e0886b8717763f7b62480f53dfe984f3f971871f54c9783bd4553e853c63488c6504a88e033b96fa32e2a29f3052c62c8ee8543be42a111a0f6b646b765f6e3443586e797a537764', 'kdkv_n4CXnyzSwd');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0010', 'org_apg_2', 'client-oidc_0010', '\x0a3f0b8b83ee694297578eed1b9ba6af6b6735dc08999ba7d6c75989ac5503ab35b2bff2d52ff0e3cd352a558e2e5b0400ac9c41a0583e703084a30f87281a242e2a111a0f6b646b765f30326955424539725677', 'kdkv_02iUBE9rVw');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0011', 'org_apg_3', 'client-oidc_0011', '\x0a4539830cb3931b453aa05d5eb2a5f70c6d201da208006b435f4a8b332d474aa824d1e84e518a1dc349bba3c0bb0a48b605f7c962f0326f05451ca6d4853e880a3a14d3b177dd2a111a0f6b646b765f4a74756f776370415150', 'kdkv_JtuowcpAQP');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0012', 'org_apg_3', 'client-oidc_0012', '\x0a3f54f2636f2f7a7092572403b0e1657374718dda91da05c3f7a7cfae0c5a0d743dca49531abe63c0199b1c0dbd4ee2eec854dd91a35f60c9b7879bdf3896bab62a111a0f6b646b765f586448615457725a504e', 'kdkv_XdHaTWrZPN');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0013', 'org_apg_3', 'client-oidc_0013', '\x0a454d5a040971c3ba65bdcec8579e128060fb7724240c93994e6dcc45c48b4384dd059c450bbe4bb703c73eb7522c88da394cc9335eab05b2f2ac315f2ad2e8faadbd902991b52a111a0f6b646b765f7639764d43497954314c', 'kdkv_v9vMCIyT1L');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0014', 'org_apg_3', 'client-oidc_0014', '\x0a3f96c92b7b4215f6eb703ea2746561413af66e904a7f4ab8606177223a2bf8dc36c64e2a33672a3e8372d1d7a3e10594ff3faf3d474327240caf125c6aba62922a111a0f6b646b765f59414f494e3074696838', 'kdkv_YAOIN0tih8');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0015', 'org_apg_3', 'client-oidc_0015', '\x0a45a05a09ecb30c32a4f1137c172ff31a7a01baac6b2866ac744ec832035780e35e25bde13579493f67d771fac53b7c6a5f218c6c5c0e86ec10864c9c8829069845e896fbe5292a111a0f6b646b765f546a4c32626948463832', 'kdkv_TjL2biHF82');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0016', 'org_apg_3', 'client-oidc_0016', '\x0a3f24ee9e5813b68d2ce3fe8ebde5b70b0bd547070b462d377cac44ba4b2e6d0bbaf7d877640563bd19bd1a4a737d17a24c4bf4a2568ba5e8deba64301ba7a82c2a111a0f6b646b765f79664c46707570623741', 'kdkv_yfLFpupb7A');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0017', 'org_apg_3', 'client-oidc_0017', '\x0a4516be1fef91e3da9574eb77e0b3abb6fd364aaf05bb1965e89b9f84bb24b9e438c714c830b38b079be4be20dabdadbbad2715bdb8af5f6b0584020a0e913cbb2790acf6cec92a111a0f6b646b765f3039703944414f6b3633', 'kdkv_09p9DAOk63');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0018', 'org_apg_3', 'client-oidc_0018', '\x0a3f1d928cd4ae07c1ec8a146f6605ae13d49cde63ce24636613b905ddce7bdaf7f1fb4591800740c28f09cf41a3c3631b69215724025f8c61a94a7205ce2e44682a111a0f6b646b765f344e326338507177704f', 'kdkv_4N2c8PqwpO');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0019', 'org_apg_4', 'client-oidc_0019', '\x0a45ea60aadb0c6a1d0851d404bb34d6ba83ca958ae8e307791cfd9901ad0c01e5fd0fe9fd028d1697ff4bd5c62ebf4ad58d0da9921f1c78c906dcb13462ec1dd736ed29dcff272a111a0f6b646b765f7a78614362384f773036', 'kdkv_zxaCb8Ow06');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0020', 'org_apg_4', 'client-oidc_0020', '\x0a3fb97c44cc96b7ec1eb29967e3d085f065ec83ec2114671e97f93b1013caba44f617c029248acb55f681e5937f5e69ee7e1f518091468ab1cc43e2b2bcbaddc62a111a0f6b646b765f5445586a4e4470346536', 'kdkv_TEXjNDp4e6');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0021', 'org_apg_5', 'client-oidc_0021', '\x0a4528db0352fbb84fbfdb2a99f178a9b97527022234264cb261795ff96a6da14924c355479cec2ccb22ee57fab38ec38d1188acc3bc9978595db05b4f0d82a445a95417ad095a2a111a0f6b646b765f4e694337454655744c7a', 'kdkv_NiC7EFUtLz');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0022', 'org_apg_5', 'client-oidc_0022', '\x0a3f7f477bce8397982d74f906ae548f0c3b86165f5c4ec8c66cc1c8290dd16e18b9e3922de31a37a09e24c26f6d1773b4c5d4ec33a719d9b5458480cadde128252a111a0f6b646b765f6c647034666d38516157', 'kdkv_ldp4fm8QaW');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0023', 'org_apg_5', 'client-oidc_0023', '\x0a45200a4326f911a91ec5b66023c08e697468f558a70936e801269f83aa2514d4619afde6220502ccbb35fda76e4cf063251d178b7e9a45cf0ae72fcf71a64fe1efb52cd190582a111a0f6b646b765f66534d6a4c4662683061', 'kdkv_fSMjLFbh0a');
INSERT INTO public.oidc (private_id, scope_id, client_id, client_secret, key_version_id) VALUES ('oidc_0024', 'org_apg_5', 'client-oidc_0024', '\x0a3fad2564055728c7fd915fd35cd98c680ccfd1e03d9e4ddfca688c2409d890be0d459f504ce3d690d13824983547d15b858e6d0d92289bee6fddefa930db15502a111a0f6b646b765f6e466750466933313249', 'kdkv_nFgPFi312I');


--
-- Data for Name: scope; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.scope (private_id) VALUES ('global');
INSERT INTO public.scope (private_id) VALUES ('org_apg_2');
INSERT INTO public.scope (private_id) VALUES ('org_apg_3');
INSERT INTO public.scope (private_id) VALUES ('org_apg_4');
INSERT INTO public.scope (private_id) VALUES ('org_apg_5');


--
-- Name: kms_data_key kms_data_key_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_data_key
    ADD CONSTRAINT kms_data_key_pkey PRIMARY KEY (private_id);


--
-- Name: kms_data_key kms_data_key_root_key_id_purpose_uq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_data_key
    ADD CONSTRAINT kms_data_key_root_key_id_purpose_uq UNIQUE (root_key_id, purpose);


--
-- Name: kms_data_key_version kms_data_key_version_data_key_id_version_uq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_data_key_version
    ADD CONSTRAINT kms_data_key_version_data_key_id_version_uq UNIQUE (data_key_id, version);


--
-- Name: kms_data_key_version kms_data_key_version_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_data_key_version
    ADD CONSTRAINT kms_data_key_version_pkey PRIMARY KEY (private_id);


--
-- Name: kms_root_key kms_root_key_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_root_key
    ADD CONSTRAINT kms_root_key_pkey PRIMARY KEY (private_id);


--
-- Name: kms_root_key kms_root_key_scope_id_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_root_key
    ADD CONSTRAINT kms_root_key_scope_id_key UNIQUE (scope_id);


--
-- Name: kms_root_key_version kms_root_key_version_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_root_key_version
    ADD CONSTRAINT kms_root_key_version_pkey PRIMARY KEY (private_id);


--
-- Name: kms_root_key_version kms_root_key_version_root_key_id_version_uq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_root_key_version
    ADD CONSTRAINT kms_root_key_version_root_key_id_version_uq UNIQUE (root_key_id, version);


--
-- Name: oidc oidc_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.oidc
    ADD CONSTRAINT oidc_pkey PRIMARY KEY (private_id);


--
-- Name: scope scope_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.scope
    ADD CONSTRAINT scope_pkey PRIMARY KEY (private_id);


--
-- Name: kms_collection_version_one_row; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX kms_collection_version_one_row ON public.kms_collection_version USING btree (((version IS NOT NULL)));


--
-- Name: kms_schema_version_one_row; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX kms_schema_version_one_row ON public.kms_schema_version USING btree (((version IS NOT NULL)));


--
-- Name: kms_data_key_version kms_data_key_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_data_key_version
    ADD CONSTRAINT kms_data_key_fkey FOREIGN KEY (data_key_id) REFERENCES public.kms_data_key(private_id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: kms_data_key kms_root_key_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_data_key
    ADD CONSTRAINT kms_root_key_fkey FOREIGN KEY (root_key_id) REFERENCES public.kms_root_key(private_id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: kms_root_key_version kms_root_key_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_root_key_version
    ADD CONSTRAINT kms_root_key_fkey FOREIGN KEY (root_key_id) REFERENCES public.kms_root_key(private_id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: kms_root_key kms_root_key_scope_fk; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_root_key
    ADD CONSTRAINT kms_root_key_scope_fk FOREIGN KEY (scope_id) REFERENCES public.scope(private_id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: kms_data_key_version kms_root_key_version_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.kms_data_key_version
    ADD CONSTRAINT kms_root_key_version_fkey FOREIGN KEY (root_key_version_id) REFERENCES public.kms_root_key_version(private_id) ON UPDATE CASCADE ON DELETE CASCADE;


--
-- Name: oidc oidc_key_version_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.oidc
    ADD CONSTRAINT oidc_key_version_id_fkey FOREIGN KEY (key_version_id) REFERENCES public.kms_data_key_version(private_id) ON UPDATE CASCADE ON DELETE RESTRICT;


--
-- Name: oidc oidc_scope_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.oidc
    ADD CONSTRAINT oidc_scope_id_fkey FOREIGN KEY (scope_id) REFERENCES public.scope(private_id);


--
-- PostgreSQL database dump complete
--

