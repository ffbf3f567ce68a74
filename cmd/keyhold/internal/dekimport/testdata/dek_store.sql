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

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: dek_store_dek; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.dek_store_dek (
    id integer NOT NULL,
    version integer NOT NULL,
    key_name text NOT NULL,
    encrypted_dek text NOT NULL,
    mek_id integer NOT NULL,
    created_at timestamp without time zone DEFAULT CURRENT_TIMESTAMP NOT NULL
);


--
-- Name: dek_store_dek_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.dek_store_dek_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: dek_store_dek_id_seq; Type: SEQUENCE OWNED BY; Schema: public; Owner: -
--

ALTER SEQUENCE public.dek_store_dek_id_seq OWNED BY public.dek_store_dek.id;


--
-- Name: dek_store_key_info; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.dek_store_key_info (
    key_name text NOT NULL,
    gen_func_name text NOT NULL
);


--
-- Name: dek_store_locks; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.dek_store_locks (
    lock_name text NOT NULL,
    locked_at timestamp without time zone NOT NULL,
    lease_until timestamp without time zone NOT NULL
);


--
-- Name: dek_store_mek; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.dek_store_mek (
    id integer NOT NULL,
    mek_hash text NOT NULL,
    created_at timestamp without time zone DEFAULT CURRENT_TIMESTAMP NOT NULL
);


--
-- Name: dek_store_mek_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.dek_store_mek_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: dek_store_mek_id_seq; Type: SEQUENCE OWNED BY; Schema: public; Owner: -
--

ALTER SEQUENCE public.dek_store_mek_id_seq OWNED BY public.dek_store_mek.id;


--
-- Name: dek_store_dek id; Type: DEFAULT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dek_store_dek ALTER COLUMN id SET DEFAULT nextval('public.dek_store_dek_id_seq'::regclass);


--
-- Name: dek_store_mek id; Type: DEFAULT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dek_store_mek ALTER COLUMN id SET DEFAULT nextval('public.dek_store_mek_id_seq'::regclass);


--
-- Data for Name: dek_store_dek; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('1','1','user_data','3ziGMXpeKixQJmdBmQgXYvl+NaqTb7WhjkXVWYRqLFyL7wHsa+CYotSvt+yA1g53OJ0n8F66rJsXFfc6','1','2026-11-22 04:06:27.397282');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('2','1','payment cards','wIQYa0LqhCvdkF810CC4RkPKwm9eA690Mt0nD0wh8ghdv7X+1+uiUIzIDInFqoIN7RGb0TRJuw4eVYgQ','1','2026-11-22 04:06:27.399058');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('3','1','sessions','9LpZkTkleSenBVVs77GxF67+PBXTiL41+aYKWtAWTkp6lc3m7/2bVu29B5eEzALbTtZZDWfhrhK/bfij','1','2026-11-22 04:06:27.399837');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('4','1','Ümlaut/key','QSrNVwVV1TbX8e7l7FH2o8JQPfZP3hNVAi9Wn0nkhSvJt+PUo3ocd+nVGy9l7qYZj1Fgapyfcb00Af2B','1','2026-11-22 04:06:27.40062');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('5','1','aes128','Yf5uTr/VA121dnV0iwE0M4n44ai/lnVBp4mkPrRBLEgarrdJuXzqB1X5lGk=','1','2026-11-22 04:06:27.401315');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('6','2','payment cards','v+oCfbmT1bt173neJ3jYUggy0D5Tq7PEddDLGdkc+5F1xqfaGdW4feNQlyweYSHnRP0tLfEFStVCAMUb','1','2026-11-22 04:06:27.402118');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('7','2','sessions','OY0MvyVMy5gI2CFU434MxCIFDj2UebWr7aQvP2S/9PvwSdxgNTpmsqh59IfasutviJ4PWEqLZwQf3fVg','1','2026-11-22 04:06:27.403919');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('8','3','sessions','hkl0C22xhW5cCIfjg7SgSDbSrFbvYi+yAUk5luWmBP2GXfC3etAJfG3vKBHfj9sBf4O/ZTKNWKgiav4K','1','2026-11-22 04:06:27.404888');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('9','2','aes128','xr2jWkhGeuka1dtGVOfCt4D8tEJDzwpyU6TQrdulAAERrb+eeu9PtqVDJC4=','1','2026-11-22 04:06:27.405844');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('10','1','aes128','WfBPfRRfBCZGBgfNWvTatMbQwSGtX6nYjS93f4irki+pGxrWIcMhlOYnB/U=','2','2026-11-22 04:06:27.427933');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('11','2','aes128','gWpjhrtsi6BBzSkb6MZcsrtcihoDM7ERTWGbwAw1WtqnI/tDX1lmtcein98=','2','2026-11-22 04:06:27.427933');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('12','1','payment cards','n2a1HjXg9dcPtH2XRMGKejy59BBme7ERaU/yfMpAMZ0R0eCwpXvyJedCs1AKEu5pTk/ZFpVmGtwmS8uW','2','2026-11-22 04:06:27.427933');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('13','2','payment cards','2sowMKNAjPyqcjvuacVgtkZBreiQeo4WXlq9Sm7UljmSixCRbUgYmtFAwWMc2WRaRDaFWGo3KeQL6HDv','2','2026-11-22 04:06:27.427933');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('14','1','sessions','VnmPqEZkKkCkzUw/qEZqcMlDPviXpXZIu3pj2tDmlOHZbNOJoA+BkQ1goWXKwvxvYkt4mpu3UhQ4kcsM','2','2026-11-22 04:06:27.427933');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('15','2','sessions','9dxJgyX4Els+1WwZ5nL8ppljcK4REm+cSP1i4+cFrC/O4gO7GinvBX0GF8utflnYsjomv09wMn0SiKOd','2','2026-11-22 04:06:27.427933');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('16','3','sessions','XD4t8YzN1QHYndZ2ZmktWVpPCIs6JPu55oi4CNt4u0bRUrVAqsIn3yk6QCy6uJFOzPfofQ0NT6Bopi/D','2','2026-11-22 04:06:27.427933');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('17','1','user_data','AmBtFuwCE8LJv0HZ7R8r+/gnwWllp3qnkoeRhtGJFh9BDOuHOBg9L7iYai29MlqhgpjdH+VU6CxM7jrQ','2','2026-11-22 04:06:27.427933');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('18','1','Ümlaut/key','z0C8D92mvl0F4n7mpicQbJ/+YTYTBPEQIUYwMTO44N3h6i6D4moovD3M/eo2iruHisU+7RQAOZN7uIWy','2','2026-11-22 04:06:27.427933');
INSERT INTO public.dek_store_dek (id, version, key_name, encrypted_dek, mek_id, created_at) VALUES ('19','2','user_data','nzq6XSeym9OyM2XfBgvsQpKqXNs+WztVI5TrWN6sGztUFR4Kn+eZcIZYB/kzxckxZN2HRkxuYNhVLMSv','2','2026-11-22 04:06:27.431317');


--
-- Data for Name: dek_store_key_info; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.dek_store_key_info (key_name, gen_func_name) VALUES ('user_data','aes256-random');
INSERT INTO public.dek_store_key_info (key_name, gen_func_name) VALUES ('payment cards','aes256-random');
INSERT INTO public.dek_store_key_info (key_name, gen_func_name) VALUES ('sessions','aes256-random');
INSERT INTO public.dek_store_key_info (key_name, gen_func_name) VALUES ('Ümlaut/key','aes256-random');
INSERT INTO public.dek_store_key_info (key_name, gen_func_name) VALUES ('aes128','aes128-random');


--
-- Data for Name: dek_store_locks; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: dek_store_mek; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.dek_store_mek (id, mek_hash, created_at) VALUES ('1','Q6eDgn9qQ8hIU5CzJuTaBw3Vt0j5+nB8Xdp8/n/R4N4=','2026-11-22 04:06:27.391237');
INSERT INTO public.dek_store_mek (id, mek_hash, created_at) VALUES ('2','u9DjS9Uom3ZknAPtwLXI28U8pRqx77NdEsq+dgDArFk=','2026-11-22 04:06:27.424347');


--
-- Name: dek_store_dek_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.dek_store_dek_id_seq', 19, true);


--
-- Name: dek_store_mek_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.dek_store_mek_id_seq', 2, true);


--
-- Name: dek_store_dek dek_store_dek_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dek_store_dek
    ADD CONSTRAINT dek_store_dek_pkey PRIMARY KEY (id);


--
-- Name: dek_store_dek dek_store_dek_version_key_name_mek_id_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dek_store_dek
    ADD CONSTRAINT dek_store_dek_version_key_name_mek_id_key UNIQUE (version, key_name, mek_id);


--
-- Name: dek_store_key_info dek_store_key_info_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dek_store_key_info
    ADD CONSTRAINT dek_store_key_info_pkey PRIMARY KEY (key_name);


--
-- Name: dek_store_locks dek_store_locks_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dek_store_locks
    ADD CONSTRAINT dek_store_locks_pkey PRIMARY KEY (lock_name);


--
-- Name: dek_store_mek dek_store_mek_mek_hash_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dek_store_mek
    ADD CONSTRAINT dek_store_mek_mek_hash_key UNIQUE (mek_hash);


--
-- Name: dek_store_mek dek_store_mek_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dek_store_mek
    ADD CONSTRAINT dek_store_mek_pkey PRIMARY KEY (id);


--
-- Name: dek_store_dek_key_name_mek_id_idx; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX dek_store_dek_key_name_mek_id_idx ON public.dek_store_dek USING btree (key_name, mek_id);


--
-- Name: dek_store_dek dek_store_dek_mek_id_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dek_store_dek
    ADD CONSTRAINT dek_store_dek_mek_id_fkey FOREIGN KEY (mek_id) REFERENCES public.dek_store_mek(id);


--
-- PostgreSQL database dump complete
--


